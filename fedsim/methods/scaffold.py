"""SCAFFOLD (Karimireddy et al., ICML 2020) of a classifier trained from scratch on images.

    x     all weights of the network                       c     the server's control variate
    y_k   client k's weights, from x                       c_k   its own, kept between rounds

    client k:  y_k  <- y_k - lr (g_k(y_k) - c_k + c)       for K_k local steps     (algorithm 1)
               c_k+ <- c_k - c + (x - y_k) / (K_k lr)                              (option II)
               sends y_k - x and c_k+ - c_k, and keeps c_k+
    server:    x <- x + mean of y_k - x
               c <- c + S * mean of c_k+ - c_k

The correction `c - c_k` enters as the gradient of a linear term of the loss. Means are weighted by
training samples, and S is the cohort's part of all training samples. The paper has equal clients
and S = |cohort| / N. With these weights c stays the mean of all c_k, and the optimum is FedAvg's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.methods.base import (
    Batch,
    Batches,
    Generators,
    Predictor,
    Received,
    State,
    States,
    Task,
    Update,
)
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.shared.namespaces import from_namespace, into_namespace
from fedsim.methods.shared.require import require_sgd
from fedsim.methods.training import effective_steps, minimise
from fedsim.params import Params, add, per_client, subtract, unstack

CONTROL = "control"
"""Namespace of control variates in a message; the weights are beside it."""

_TINY = 1e-30


class Scaffold(FedAvg):
    """Federated averaging with control variates against the clients' drift."""

    averages = False  # half of an update is no step of the weights

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        super().check(config)
        require_sgd(config.train, config.use)

    def setup(self, task: Task, rng: torch.Generator) -> State:
        weights = super().setup(task, rng)
        return {"weights": weights, "control": {k: torch.zeros_like(v) for k, v in weights.items()}}

    def message(self, state: State) -> Params:
        return state["weights"] | into_namespace(CONTROL, state["control"])

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        weights, control = from_namespace(message), from_namespace(message, CONTROL)
        own = {
            k: torch.stack([state.get(k, torch.zeros_like(c)) for state in client_state])
            for k, c in control.items()
        }
        correction = subtract({k: c[None] for k, c in control.items()}, own)
        plain = self.loss(message, batches, client_state)

        def corrected(params: Params, batch: Batch) -> Tensor:
            terms = [(correction[k] * v).flatten(1).sum(1) for k, v in params.items()]
            return plain(params, batch) + torch.stack(terms).sum(0)

        change = minimise(weights, corrected, batches)
        length = batches.train.lr * effective_steps(batches.train, batches.num_steps)
        length = length.to(batches.device)
        moved = {}
        for k, v in change.items():
            along = per_client(length, v)
            moved[k] = -control[k] * (along > 0) - v / along.clamp_min(_TINY)  # 0 for a ghost
        kept = add(own, moved)
        states = [unstack(kept, c) for c in range(batches.num_clients)]
        delta = change | into_namespace(CONTROL, moved)
        return Update(delta, batches.num_samples, change=change), states

    def aggregate(self, state: State, received: Received) -> State:
        change, moved = from_namespace(received.mean), from_namespace(received.mean, CONTROL)
        moved = {k: received.share * v for k, v in moved.items()}
        return {"weights": add(state["weights"], change), "control": add(state["control"], moved)}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return super().predictor(state["weights"])
