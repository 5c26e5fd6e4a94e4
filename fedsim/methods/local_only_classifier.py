"""A floor: every client trains the network of `fedavg` alone, and nothing is ever sent.

A federated method is worth joining for clients that it serves better than this. There is no global
model: figures are means over the clients' own models.
"""

from __future__ import annotations

from functools import cached_property

from fedsim.config import MethodConfig
from fedsim.methods.base import NoOptions
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.local_only import LocalOnly


class LocalOnlyClassifier(LocalOnly):
    """Local training of a network without any aggregation."""

    inputs = "images"
    frozen = ()
    sections = ()
    Options = NoOptions

    @cached_property
    def inner(self) -> FedAvg:
        return FedAvg(self.task, NoOptions())

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return False

    @classmethod
    def needs_public(cls, config: MethodConfig) -> bool:
        return False

    def check_task(self) -> None:
        self.inner.check_task()
