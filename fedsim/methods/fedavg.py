"""FedAvg (McMahan et al., 2017) of a classifier trained from scratch on images.

    w         all weights of `models.classifier`, drawn once on the server
    round:    every client k takes local steps on its own loss from w, and ends at w_k
              w <- w + sum_k (n_k / n) (w_k - w)                              (algorithm 1)

The round itself is in `fedsim.methods.shared.averaged`. FedAvgM, FedAdam and FedYogi are other
steps of the server on the same mean (`server.optimizer`). FedLC and other shifts of the logits are
parts of the local loss (`train.logit_adjustment`).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fedsim.methods.base import State, Task
from fedsim.methods.shared.averaged import AveragedModel
from fedsim.models.classifiers import Classifier
from fedsim.params import Params, to_device


class FedAvg(AveragedModel):
    """Federated averaging of all weights of a network."""

    inputs = "images"
    frozen = ()

    @cached_property
    def net(self) -> Classifier:
        """The architecture; the weights are in the state."""
        assert self.task.image_shape is not None
        settings = self.config.models.classifier
        return Classifier(settings, self.task.image_shape, self.task.num_classes)

    def check_task(self) -> None:
        _ = self.net  # raises for images that the network cannot read

    def setup(self, task: Task, rng: torch.Generator) -> State:
        return dict(to_device(self.net.init(rng), task.device))

    def logits(self, model: Params, x: Tensor) -> Tensor:
        return self.net(model, x)

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        return self.net.on_clients(params, x)

    def class_rows(self, message: Params) -> Params:
        return self.net.class_rows(self.task.device)
