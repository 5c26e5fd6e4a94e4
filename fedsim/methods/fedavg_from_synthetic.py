"""Control: FedAvg of a classifier that the server has first trained on its generated images.

    w     <- `options.epochs` passes over the generated, class-balanced set, from a random start
    then  FedAvg on the clients' images, from w

It has the same prior knowledge as methods that distil through the generator. A method that does not
beat it shows the value of its generator, not of its distillation.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field

from fedsim.config import MethodConfig
from fedsim.methods.base import State, Task
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.training import train_centrally


class FedAvgFromSyntheticOptions(BaseModel, extra="forbid"):
    """The server's training before round 1."""

    epochs: int = Field(50, gt=0)
    """Passes over the generated set."""
    lr: float | None = Field(None, gt=0)
    """Learning rate; by default `train.lr`."""


class FedAvgFromSynthetic(FedAvg):
    """Federated averaging from a start trained on generated images."""

    sections = ("cache",)  # images_per_class
    Options = FedAvgFromSyntheticOptions
    options: FedAvgFromSyntheticOptions

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return True

    def setup(self, task: Task, rng: torch.Generator) -> State:
        options, data = self.options, task.synthetic
        start = super().setup(task, rng)
        if data is None:  # the caller needs only shapes
            return start
        changes = {"local_epochs": options.epochs, "lr": options.lr or self.config.train.lr}
        train = self.config.train.model_copy(update=changes)
        return dict(
            train_centrally(start, lambda w, x: self.net(w, task.prepare(x)), data, train, rng)
        )
