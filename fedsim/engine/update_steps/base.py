"""The contract of an update step.

Between `Method.client_update` and the exact sum, a group's updates pass through the run's steps in
the order of their `place`; the sum then passes through their server sides in the opposite order.
A step is one file with a subclass of `UpdateStep`, and one line in
`fedsim.config.families.UPDATE_STEPS`. A complete one, which bounds every update's length:

    >>> from dataclasses import replace
    >>> class Clip(UpdateStep):
    ...     place = Place.CLIP
    ...     def on_clients(self, sent, group):
    ...         return replace(sent, update=sent.update.clipped(1.0))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import torch

from fedsim.methods.base import Batches, Method, Received, Update
from fedsim.params import Params, num_bytes, unstack
from fedsim.seeding import torch_rng


class Place(IntEnum):
    """Where in the order a step stands, from the client's training to the sum."""

    ALTER = 1
    """A client reports another update than it has trained, as attackers do."""
    CLIP = 2
    """Bounds of what one client can contribute."""
    NOISE = 3
    """Noise that the client adds."""
    COMPRESS = 4
    """Fewer bytes on the wire."""
    WEIGH = 5
    """Other weights of the average than the update's own."""


@dataclass(frozen=True)
class GroupContext:
    """The group whose updates a step is given.

    Attributes:
        method: The run's method.
        message: What the clients received, without a client axis.
        batches: Their local data; `batches.client_ids` says which clients, -1 for a ghost.
        round: From 1.
        seed: The run's `train_seed`.
        step: The step's name in `UPDATE_STEPS`.
        kept: Per client, the tensors that the step kept at its last participation; {} at first.
    """

    method: Method
    message: Params
    batches: Batches
    round: int
    seed: int
    kept: Sequence[Params] = ()
    step: str = ""

    def rng(self, purpose: str, client: int) -> torch.Generator:
        """A CPU generator of its own for a step, a client and this round.

        Draw for every client from its own generator: results then do not depend on the grouping.
        """
        return torch_rng(self.seed, purpose, self.round, client)


@dataclass(frozen=True)
class Sent:
    """A group's updates on their way to the server.

    Attributes:
        update: The update as the server will read it.
        encoded: What travels in place of `update.delta`, `(C, ...)` by name; None: the delta.
        beside: More tensors to send and sum, `(C, ...)` by step and name. The step's server side
            finds their weighted means in `Received.beside`. Add to the dict, under the step's name.
        kept: Tensors that clients keep until their next participation, in the same form.
    """

    update: Update
    encoded: Params | None = None
    beside: Mapping[str, Params] = field(default_factory=dict)
    kept: Mapping[str, Params] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of one client on the wire, without `update.extra`, which differs by client."""
        travels = self.update.delta if self.encoded is None else self.encoded
        products = sum(product.num_bytes for product in self.update.products.values())
        beside = sum(num_bytes(unstack(tensors, 0)) for tensors in self.beside.values())
        return num_bytes(unstack(travels, 0)) + products + beside


class UpdateStep:
    """Base of all steps. An instance holds settings, never changing state.

    Args:
        settings: The section that `section` names; None for a step without one.
    """

    place: ClassVar[Place]
    """Where in the order it stands."""
    section: ClassVar[str | None] = None
    """The section of the configuration that it reads."""
    one_by_one: ClassVar[bool] = False
    """Whether the server side needs the updates one by one, in `Received.kept`, and makes the mean
    itself. Robust rules do."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings

    @classmethod
    def wanted(cls, settings: Any) -> bool:
        """Whether these settings ask for the step."""
        return True

    def on_clients(self, sent: Sent, group: GroupContext) -> Sent:
        """The group's updates after this step. `update.products` have been formed.

        Names, shapes and types of `update.delta`, and the weights' shape, stay as they are. A delta
        may be empty, and client -1 is a ghost, whose weight is 0.
        """
        return sent

    def on_server(self, received: Received, method: Method, download: Params) -> Received:
        """The average after the server side of this step; `download` is what every client received.

        `received` has the weighted means, or with `one_by_one` the updates in `kept`.
        """
        return received
