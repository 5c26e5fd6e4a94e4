"""A synthetic set with everything that is known about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedsim.params import Params

UNINFORMATIVE = 0.1
"""A client's move says nothing about its images if noise with the same labels comes this close to
it, by each distance that the loss adds up."""

NOBODY = -1
"""Stands for a client where a set belongs to no single one."""


@dataclass(frozen=True)
class SyntheticSet:
    """One client's set, or the set of all clients; tensors are on the CPU.

    Attributes:
        client_id: The client, or `NOBODY`.
        images: `(n, c, h, w)` in [-1, 1]; features `(n, d)` where features are distilled.
        labels: `(n,)` int64, sorted.
        latents: The images are decoded from them; {} for images that were sent.
        loss_before: Distance of the prior's images, before any step and without augmentation; None
            for images that were sent.
        loss_after: The same of the distilled images.
        loss_noise: The same of noise with the same labels, at a step size that suits it.
        distill_s: The set's share of the time, s.
        lr: The student's step size; None without a student.
        terms: Number of distances that a loss adds up: one, or one per output row of a gradient.
        crowded: Whether `distill.clients_at_once` sets did not fit in memory together.
    """

    client_id: int
    images: Tensor
    labels: Tensor
    latents: Params = field(default_factory=dict)
    loss_before: float | None = None
    loss_after: float | None = None
    loss_noise: float | None = None
    distill_s: float | None = None
    lr: float | None = None
    terms: int = 1
    crowded: bool = False

    @property
    def finite(self) -> bool:
        """Whether every pixel is a finite number."""
        return bool(self.images.isfinite().all())

    @property
    def uninformative(self) -> bool:
        """Whether noise with the same labels makes nearly the same move."""
        return self.loss_noise is not None and self.loss_noise < UNINFORMATIVE * self.terms

    @property
    def memory(self) -> dict[str, Any]:
        """The start of the client's next set."""
        usable = self.lr is not None and math.isfinite(self.lr)
        return {"latents": self.latents} | ({"lr": self.lr} if usable else {})

    def row(self) -> dict[str, Any]:
        """The set's row in the table `synthetic`, without run and round."""
        row: dict[str, Any] = {
            "client_id": None if self.client_id == NOBODY else self.client_id,
            "num_images": len(self.labels),
            "num_classes": len(self.labels.unique()),
        }
        if self.loss_before is not None:
            row["match_loss_before"] = self.loss_before
            row["match_loss_after"] = self.loss_after
            row["match_loss_noise"] = self.loss_noise
            row["generate_s"] = self.distill_s
        if self.lr is not None:
            row |= {"student_lr": self.lr, "uninformative": self.uninformative}
        return row
