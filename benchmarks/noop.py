"""Clients that return what they were sent: a method of which nothing but the simulator is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsim.methods.base import Batches, State, Update
from fedsim.methods.fedavg_head import FedAvgHead
from fedsim.params import Params


class Idle:
    """What a client does, in the place of a method's own training."""

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        delta = {k: torch.zeros(batches.num_clients, *v.shape) for k, v in message.items()}
        return Update(delta, weight=batches.num_samples), client_state


class NoOp(Idle, FedAvgHead):
    """A linear head that stays as it is."""
