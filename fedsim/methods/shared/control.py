"""Base of controls: the model of a federated method, trained in another way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel

from fedsim.methods.base import Method, NoOptions, Predictor, Received, State, Task
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.fedavg_head import FedAvgHead
from fedsim.methods.shared.averaged import AveragedModel


class ControlOptions(BaseModel, extra="forbid"):
    """The model that is trained."""

    model: Literal["head", "cache"] = "head"


class Control(Method):
    """The head of `fedavg_head` or the cache of `cachefl`. The server averages nothing."""

    sections: ClassVar[tuple[str, ...]] = ("cache",)
    Options: ClassVar[type[BaseModel]] = ControlOptions
    options: ControlOptions

    @cached_property
    def inner(self) -> AveragedModel:
        """The federated method whose start and model the control has."""
        cls = CacheFL if self.options.model == "cache" else FedAvgHead
        return cls(self.task, NoOptions())

    def check_task(self) -> None:
        self.inner.check_task()

    def setup(self, task: Task, rng: torch.Generator) -> State:
        return self.inner.setup(task, rng)

    def aggregate(self, state: State, received: Received) -> State:
        return state

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return self.inner.predictor(state | dict(client_state or {}))


class NetworkControl(Control):
    """The network of `fedavg` instead of the head or the cache."""

    inputs = "images"
    frozen = ()
    Options = NoOptions

    @cached_property
    def inner(self) -> FedAvg:
        """FedAvg of the network."""
        return FedAvg(self.task, NoOptions())
