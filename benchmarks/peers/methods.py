"""W1's network as a user of fedsim would bring it: a method file, `use: methods.py:CnnFedAvg`.

fedsim's own networks of 80,000 parameters (`convnet`, width 64) multiply nine times as often, and
would measure convolutions instead of simulators.
"""

from __future__ import annotations

from functools import cached_property

from torch import nn

from benchmarks.noop import Idle
from benchmarks.peers.networks import Cnn
from fedsim.config.classifier import ClassifierConfig
from fedsim.methods.fedavg import FedAvg
from fedsim.models.classifiers import Classifier


class _Network(Classifier):
    """`Cnn` in the place of a configured network."""

    def body(self) -> nn.Module:
        return Cnn(self.num_classes).body


class CnnFedAvg(FedAvg):
    """Federated averaging of `Cnn`."""

    @cached_property
    def net(self) -> Classifier:
        assert self.task.image_shape is not None
        return _Network(ClassifierConfig(), self.task.image_shape, self.task.num_classes)


class NoOp(Idle, CnnFedAvg):
    """Clients that return what they were sent: nothing but the simulator's work is left."""
