"""Control: the server trains the network of `fedavg` on its generated images, and no client does.

A round is `train.local_epochs` passes over the set, so that rounds compare with federated ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from fedsim.methods.base import NoOptions, Predictor, State, Task
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.synthetic_only import SyntheticOnly
from fedsim.params import Params


class SyntheticOnlyClassifier(SyntheticOnly):
    """Centralised training of a network on generated images."""

    inputs = "images"
    frozen = ()
    Options = NoOptions

    @cached_property
    def _model(self) -> FedAvg:
        return FedAvg(self.task, self.options)

    def check_task(self) -> None:
        self._model.check_task()

    def setup(self, task: Task, rng: torch.Generator) -> State:
        return self._model.setup(task, rng)

    def trained(self, state: State) -> Params:
        return state

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return self._model.predictor(state)
