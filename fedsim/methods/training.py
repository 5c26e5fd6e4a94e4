"""Local training over the client axis: one optimiser step for all clients of a group at once.

The clients' losses are summed before the backward pass; since no parameter is shared between
clients, each receives exactly the gradient of its own loss. `train_one_by_one` is the plain loop
that does the same and is compared with it in the tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config import TrainConfig
from fedsim.methods.base import Batches, Labelled
from fedsim.params import Params, stack, subtract

Logits = Callable[[Params, Tensor], Tensor]
"""Stacked params and inputs `(C, B, ...)` -> logits `(C, B, num_classes)`."""


def cross_entropy(logits: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of every client's valid samples.

    Args:
        logits: `(C, B, num_classes)`.
        y: `(C, B)` int64 labels.
        mask: `(C, B)` bool, True where valid.

    Returns:
        `(C,)`; 0 for a client without valid samples.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(mask)
    return (losses * mask).sum(1) / mask.sum(1).clamp_min(1)


def optimizer(params: list[Tensor], train: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW as configured; both act elementwise, so stacked clients do not mix."""
    if train.optimizer == "adamw":
        return torch.optim.AdamW(
            params, lr=train.lr, eps=1e-4, weight_decay=train.weight_decay, fused=True
        )
    return torch.optim.SGD(
        params, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True
    )


def train_locally(start: Params, logits: Logits, batches: Batches, train: TrainConfig) -> Params:
    """Local epochs of every client of a group from the same start.

    Args:
        start: The trainable tensors, without a client axis.
        logits: The model over the client axis.
        batches: The group's local data; a pass over it is all local epochs.
        train: Optimiser, learning rate and the rest.

    Returns:
        Each client's change, `(C, ...)` by name.
    """
    params = {k: v.requires_grad_() for k, v in stack(start, batches.num_clients).items()}
    leaves = list(params.values())
    step = optimizer(leaves, train)
    for batch in batches:
        loss = cross_entropy(logits(params, batch.x), batch.y, batch.mask)
        step.zero_grad()
        loss.sum().backward()  # gives gradients the layout that fused optimisers take for granted
        if batch.active.all():
            step.step()
            continue
        # Finished clients stand still: momentum and weight decay would move them on.
        before = [leaf.detach().clone() for leaf in leaves]
        step.step()
        with torch.no_grad():
            for leaf, old in zip(leaves, before, strict=True):
                leaf.copy_(torch.where(batch.active.view(-1, *[1] * (leaf.dim() - 1)), leaf, old))
    return subtract({k: v.detach() for k, v in params.items()}, start)


def train_one_by_one(start: Params, logits: Logits, batches: Batches, train: TrainConfig) -> Params:
    """The readable reference of `train_locally`: a plain loop over clients and their batches."""
    changes: list[Params] = []
    for c in range(batches.num_clients):
        params = {k: v.clone().requires_grad_() for k, v in start.items()}
        step = optimizer(list(params.values()), train)
        for batch in batches:
            valid = batch.mask[c]
            if not valid.any():
                continue
            alone = {k: v[None] for k, v in params.items()}
            scores = logits(alone, batch.x[c, valid][None])[0]
            step.zero_grad()
            F.cross_entropy(scores, batch.y[c, valid]).backward()
            step.step()
        changes.append(subtract({k: v.detach() for k, v in params.items()}, start))
    return {k: torch.stack([change[k] for change in changes]) for k in start}


def train_centrally(
    start: Params,
    logits: Callable[[Params, Tensor], Tensor],
    data: Labelled,
    train: TrainConfig,
    rng: torch.Generator,
) -> Params:
    """`local_epochs` passes over one labelled set on the server.

    Args:
        start: The trainable tensors.
        logits: Params and inputs `(B, ...)` -> logits `(B, num_classes)`.
        data: The server's samples.
        train: Optimiser, learning rate, epochs and batch size.
        rng: CPU generator of the sample order.

    Returns:
        The trained tensors.
    """
    params = {k: v.clone().requires_grad_() for k, v in start.items()}
    step = optimizer(list(params.values()), train)
    for _ in range(train.local_epochs):
        order = torch.randperm(len(data), generator=rng).to(data.labels.device)
        for rows in order.split(train.batch_size):
            step.zero_grad()
            F.cross_entropy(logits(params, data.inputs[rows]), data.labels[rows]).backward()
            step.step()
    return {k: v.detach() for k, v in params.items()}
