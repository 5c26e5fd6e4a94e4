"""The local data of a group of clients, in the steps that the clients take together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsim.config.sections import TrainConfig

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """One local step of all clients of a group."""

    x: Tensor
    """`(C, B, ...)` inputs."""
    y: Tensor
    """`(C, B)` int64 labels."""
    mask: Tensor
    """`(C, B)` bool: False where the sample is padding."""
    active: Tensor
    """`(C,)` bool: False for clients that have finished."""


@dataclass(frozen=True)
class Batches:
    """The local data of one group, in the steps that its clients take together.

    Clients of unequal size are padded to the longest one. Padding repeats a valid row and is
    masked. A client's bits depend on the number of its neighbours, because networks round
    differently for C = 2 than for C = 3, but not on their data. Groups are therefore never split. A
    group of one has a ghost as its neighbour, with weight 0, because C = 1 takes different kernels.
    """

    client_ids: tuple[int, ...]
    """-1 for a ghost."""
    num_samples: Tensor
    """`(C,)` float64 training samples per client; 0 for a ghost."""
    steps: tuple[tuple[Tensor, Tensor], ...]
    """Per local step: rows `(C, B)` int64 into `inputs`, and mask `(C, B)` bool."""
    scan: tuple[tuple[Tensor, Tensor], ...]
    """The same for one pass over every sample, in chunks, to measure clients with."""
    inputs: Tensor
    """`(num_rows, ...)`, shared by all clients of the node: one row per training sample, or per
    view of it."""
    labels: Tensor
    """`(num_rows,)` int64."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The settings of local training in this round."""
    prepare: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    """Stored inputs -> model inputs, such as uint8 pixels -> normalised floats."""
    device: torch.device = _CPU

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def num_steps(self) -> Tensor:
        """`(C,)` int64 steps of every client; 0 for a ghost."""
        return torch.stack([mask.any(1) for _, mask in self.steps]).sum(0)

    @property
    def num_clients(self) -> int:
        """C, the ghost included."""
        return len(self.client_ids)

    def only(self, places: Sequence[int]) -> Batches:
        """The clients at these places along C, with their steps."""
        chosen = list(places)
        return replace(
            self,
            client_ids=tuple(self.client_ids[c] for c in chosen),
            num_samples=self.num_samples[chosen],
            steps=tuple((r[chosen], m[chosen]) for r, m in self.steps if m[chosen].any()),
            scan=tuple((r[chosen], m[chosen]) for r, m in self.scan if m[chosen].any()),
        )

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(self.steps)

    def all_samples(self) -> Iterator[Batch]:
        """Each sample once, in a fixed order."""
        return self._batches(self.scan)

    def label_counts(self, num_classes: int) -> Tensor:
        """`(C, num_classes)` float32: every client's training samples of each class."""
        counts = torch.zeros(self.num_clients, num_classes)
        for rows, mask in self.scan:
            labels = self.labels[rows.to(self.labels.device)].cpu()
            counts.scatter_add_(1, labels, mask.to(counts.dtype))
        return counts.to(self.device)

    def _batches(self, steps: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Batch]:
        for rows, mask in steps:
            where = rows.to(self.inputs.device)
            mask = mask.to(self.device)
            x = self.prepare(self.inputs[where].to(self.device))
            yield Batch(x, self.labels[where].to(self.device), mask, mask.any(1))
