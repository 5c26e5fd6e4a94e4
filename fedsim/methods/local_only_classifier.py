"""Control: every client trains the network of `fedavg` alone and sends nothing.

A client gains from a federated method that serves it better than this control. There is no global
model. Figures are means over the clients' own models.
"""

from __future__ import annotations

from functools import cached_property

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

    def check_task(self) -> None:
        self.inner.check_task()
