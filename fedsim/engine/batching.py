"""Clients stacked on a leading axis C: groups of a cohort, and their padded local batches.

The unit of work is a group: clients of the cohort that hold about as many samples, so that little
is padded. Shapes are computed from the group alone, so a group gives the same bits wherever it
runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.config.sections import TrainConfig
from fedsim.methods.base import Batches
from fedsim.seeding import numpy_rng

GHOST = -1
_SCAN_BATCH = 256


@dataclass(frozen=True)
class Group:
    """Clients that are trained together.

    Attributes:
        position: Place among the round's groups.
        client_ids: The simulated clients, those with more samples first.
        indices: Per client, its training rows, `(n_k,)` int64.
        held: Per client, rows to measure its own model on; empty when it is not measured.
    """

    position: int
    client_ids: tuple[int, ...]
    indices: tuple[np.ndarray, ...]
    held: tuple[np.ndarray, ...] = ()

    @property
    def num_samples(self) -> int:
        """Training samples of all its clients."""
        return sum(len(rows) for rows in self.indices)

    def only(self, keep: Sequence[int]) -> Group:
        """The same group with some of its clients, given by id."""
        at = [self.client_ids.index(client) for client in keep]
        return Group(
            self.position,
            tuple(self.client_ids[i] for i in at),
            tuple(self.indices[i] for i in at),
            tuple(self.held[i] for i in at if self.held),
        )


def make_groups(
    cohort: Sequence[int],
    indices: Sequence[np.ndarray],
    group_size: int,
    held: Sequence[np.ndarray] = (),
) -> list[Group]:
    """Cut a cohort into groups of at most `group_size` clients, the largest clients first.

    Stacked clients take as many steps as the largest of them. Clients of equal size keep the order
    in which they were sampled.
    """
    rows = {int(client): indices[client] for client in cohort}
    ordered = sorted(rows, key=lambda client: -len(rows[client]))
    return [
        Group(
            position,
            tuple(ordered[at : at + group_size]),
            tuple(rows[client] for client in ordered[at : at + group_size]),
            tuple(held[client] for client in ordered[at : at + group_size] if held),
        )
        for position, at in enumerate(range(0, len(ordered), group_size))
    ]


def make_batches(
    group: Group,
    inputs: Tensor,
    labels: Tensor,
    train: TrainConfig,
    seed: int,
    round: int,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    device: torch.device | None = None,
) -> Batches:
    """The steps of all local epochs of a group.

    Every client shuffles its own samples anew each epoch with a stream of its own, and takes
    `ceil(n_k / batch_size)` steps per epoch, the last one possibly smaller. Under
    `train.augment_views` V, a step takes one of the V rows of each of its samples. The choice has
    a stream of its own, so the order is the same as without views. Measuring takes the first row,
    which is the image itself.

    Args:
        group: Which clients, and their rows.
        inputs: `(num_train * V, ...)`, shared by all clients of the node; views of a sample are
            consecutive rows.
        labels: `(num_train * V,)` int64.
        train: Batch size, local epochs and V.
        seed: The experiment's training seed.
        round: From 1.
        prepare: Stored inputs to model inputs.
        device: Of the batches; that of `inputs` by default.
    """
    plans = [
        _epochs(client, rows, train, seed, round)
        for client, rows in zip(group.client_ids, group.indices, strict=True)
    ]
    scans = [_cut(rows * train.augment_views, _SCAN_BATCH) for rows in group.indices]
    client_ids, sizes = list(group.client_ids), [len(rows) for rows in group.indices]
    if len(client_ids) == 1:  # see Batches: C = 1 rounds differently
        client_ids.append(GHOST)
        sizes.append(0)
        plans.append([])
        scans.append([])
    return Batches(
        client_ids=tuple(client_ids),
        num_samples=torch.tensor(sizes, dtype=torch.float64),
        steps=_stack(plans, min(train.batch_size, max(sizes))),
        scan=_stack(scans, min(_SCAN_BATCH, max(sizes))),
        inputs=inputs,
        labels=labels,
        train=train.at(round),
        prepare=prepare,
        device=device or inputs.device,
    )


def _epochs(
    client: int, rows: np.ndarray, train: TrainConfig, seed: int, round: int
) -> list[np.ndarray]:
    rng, views = numpy_rng(seed, "batches", round, client), train.augment_views
    rows = np.array(rows)  # `permutation` of no rows shuffles in place; arrays of Ray are read-only
    orders = [rng.permutation(rows) for _ in range(train.epochs(round))]
    if views > 1:
        rng = numpy_rng(seed, "views", round, client)
        orders = [order * views + rng.integers(views, size=len(rows)) for order in orders]
    return [batch for order in orders for batch in _cut(order, train.batch_size)]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive batches, the last one possibly smaller."""
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _stack(plans: Sequence[Sequence[np.ndarray]], width: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Ragged plans -> per step, rows `(C, width)` and mask; padding repeats a row of the client."""
    fallback = next(plan[0][0] for plan in plans if len(plan) and len(plan[0]))
    steps = max(len(plan) for plan in plans)
    rows = np.empty((steps, len(plans), width), dtype=np.int64)
    mask = np.zeros((steps, len(plans), width), dtype=bool)
    for c, plan in enumerate(plans):
        rows[:, c] = plan[0][0] if len(plan) else fallback
        for step, batch in enumerate(plan):
            rows[step, c, : len(batch)] = batch
            mask[step, c, : len(batch)] = True
    return tuple(zip(torch.from_numpy(rows), torch.from_numpy(mask), strict=True))


def num_steps(num_samples: int, train: TrainConfig, round: int) -> int:
    """Local steps of a client with `num_samples` samples in a round."""
    return train.epochs(round) * math.ceil(num_samples / train.batch_size)
