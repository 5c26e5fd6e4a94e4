"""Local training over the client axis: one optimiser step for all clients of a group at once.

The clients' losses are summed before the backward pass. Clients share no parameter, so each
receives exactly the gradient of its own loss. `train_one_by_one` is a plain loop that does the
same; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedsim.config.sections import TrainConfig
from fedsim.methods.base import Batch, Batches, Labelled
from fedsim.params import Params, stack, subtract

Logits = Callable[[Params, Tensor], Tensor]
"""Stacked params and inputs `(C, B, ...)` -> logits `(C, B, num_classes)`."""

Loss = Callable[[Params, Batch], Tensor]
"""Stacked params and a batch -> every client's loss on it, `(C,)`."""

Watch = Callable[[int, Params], None]
"""Called with the number of a local step, from 1, and the stacked params after that step."""


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


class Optimizer:
    """SGD or AdamW as configured. Both act elementwise, so stacked clients do not mix.

    The steps are torch's own fused kernels in their functional form. A `torch.optim.Optimizer`
    would load torch's compiler first, which takes 3 s of CPU time in every process.
    """

    def __init__(self, params: list[Tensor], train: TrainConfig) -> None:
        self._params, self._train = params, train
        self._momentum: list[Tensor | None] = [None] * len(params)
        adaptive = params if train.optimizer == "adamw" else []
        self._mean = [torch.zeros_like(p) for p in adaptive]
        self._square = [torch.zeros_like(p) for p in adaptive]
        self._steps = [torch.zeros((), device=p.device) for p in adaptive]

    def step(self, loss: Tensor) -> None:
        """Backward pass and one step of all parameters."""
        for param in self._params:
            param.grad = None
        loss.backward()  # gradients get the layout that fused kernels assume
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        train = self._train
        how: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
        how |= {"maximize": False, "foreach": False, "fused": True}
        with torch.no_grad():
            if train.optimizer == "adamw":
                moments: Any = self._mean, self._square, [], self._steps
                how |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-4, "amsgrad": False}
                adamw(self._params, gradients, *moments, **how)
            else:
                how |= {"momentum": train.momentum, "dampening": 0.0, "nesterov": False}
                sgd(self._params, gradients, self._momentum, **how)


def shifted(logits: Tensor, counts: Tensor, train: TrainConfig) -> Tensor:
    """Logits as the local loss reads them, given the labels of a client.

    `log_prior` adds `tau log p_c` (Menon et al., 2021, equation 10). `fedlc` subtracts
    `tau n_c^(-1/4)` (Zhang et al., 2022, equation 5). Both count an absent class as half a sample.
    `mask_absent_classes` stops gradients through the logits of absent classes.

    Args:
        logits: `(C, B, num_classes)`.
        counts: `(C, num_classes)` samples per class of every client.
        train: The shift and its strength.
    """
    if train.mask_absent_classes:
        logits = torch.where(counts[:, None] > 0, logits, logits.detach())
    tau, present = train.logit_adjustment_tau, counts.clamp_min(0.5)
    if train.logit_adjustment == "log_prior":
        return logits + tau * (present / present.sum(1, keepdim=True)).log()[:, None]
    if train.logit_adjustment == "fedlc":
        return logits - tau * present.pow(-0.25)[:, None]
    return logits


def proximal(params: Params, start: Params, mu: float) -> Tensor:
    """FedProx's `mu / 2 |w - w_0|^2` of every client, `(C,)` (Li et al., 2020, equation 2)."""
    squares = [(params[k] - start[k]).square().flatten(1).sum(1) for k in params]
    return mu / 2 * torch.stack(squares).sum(0)


class LabelLoss:
    """Cross-entropy on logits that every client's own labels shift (see `shifted`).

    Args:
        batches: The group's local data. Its labels are counted once.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._counts: Tensor | None = None

    def __call__(self, scores: Tensor, batch: Batch) -> Tensor:
        """Logits `(C, B, num_classes)` of a batch -> losses `(C,)`."""
        if self._counts is None:
            self._counts = self._batches.label_counts(scores.shape[-1])
        return cross_entropy(
            shifted(scores, self._counts, self._batches.train), batch.y, batch.mask
        )


def train_locally(start: Params, logits: Logits, batches: Batches) -> Params:
    """`minimise` for a model without a loss of its own."""
    return minimise(start, of_logits(logits, batches), batches)


def train_apart(
    starts: Params, logits: Logits, batches: Batches, watch: Watch | None = None
) -> Params:
    """`train_locally` with a start of its own for every client, `(C, ...)` by name.

    `watch` is called after every step.
    """
    params = {k: v.clone() for k, v in starts.items()}
    return _train(params, starts, of_logits(logits, batches), batches, watch)


def of_logits(logits: Logits, batches: Batches) -> Loss:
    """The loss that local training minimises if a method adds nothing to it."""
    loss = LabelLoss(batches)
    return lambda params, batch: loss(logits(params, batch.x), batch)


def minimise(start: Params, loss: Loss, batches: Batches) -> Params:
    """Local epochs of every client of a group from the same start.

    Args:
        start: The trainable tensors, without a client axis.
        loss: A proximal term is added to it as configured.
        batches: The group's local data and its settings. One pass over it is all local epochs.

    Returns:
        Each client's change, `(C, ...)` by name.
    """
    return _train(stack(start, batches.num_clients), start, loss, batches)


def _train(
    params: Params, start: Params, loss: Loss, batches: Batches, watch: Watch | None = None
) -> Params:
    """Train the stacked `params` in place; return their change from `start`, stacked or not."""
    mu = batches.train.proximal_mu
    params = {k: v.requires_grad_() for k, v in params.items()}
    leaves = list(params.values())
    optimizer = Optimizer(leaves, batches.train)
    for number, batch in enumerate(batches, 1):
        losses = loss(params, batch)
        total = (losses + proximal(params, start, mu) if mu else losses).sum()
        # Finished clients stand still, although momentum and weight decay would move them.
        idle = ~batch.active
        before = [leaf.detach()[idle] for leaf in leaves] if idle.any() else []
        optimizer.step(total)
        if before:
            with torch.no_grad():
                for leaf, old in zip(leaves, before, strict=True):
                    leaf[idle] = old
        if watch:
            watch(number, params)
    del optimizer  # its moments take twice the memory of the params
    return {k: v.detach().sub_(start[k]) for k, v in params.items()}


def effective_steps(train: TrainConfig, num_steps: Tensor) -> Tensor:
    """The length of local SGD against a constant gradient of 1, in units of `train.lr`.

    This is `|a|_1` of FedNova (Wang et al., 2020): K for K plain steps, more with momentum, less
    with a proximal term. It is computed by taking the steps.

    Args:
        train: The clients' settings.
        num_steps: `(C,)` steps of every client.

    Returns:
        `(C,)` float32; 0 for a ghost.
    """
    position, velocity, reached = 0.0, 0.0, [0.0]
    for _ in range(int(num_steps.max())):
        velocity = train.momentum * velocity + 1 - train.proximal_mu * position
        position += train.lr * velocity
        reached.append(position / train.lr)
    return torch.tensor(reached)[num_steps]


def train_one_by_one(start: Params, logits: Logits, batches: Batches) -> Params:
    """The readable reference of `train_locally`: a plain loop over clients and their batches."""
    train = batches.train
    changes: list[Params] = []
    for c in range(batches.num_clients):
        params = {k: v.clone().requires_grad_() for k, v in start.items()}
        optimizer = Optimizer(list(params.values()), train)
        for batch in batches:
            valid = batch.mask[c]
            if not valid.any():
                continue
            alone = {k: v[None] for k, v in params.items()}
            scores = logits(alone, batch.x[c, valid][None])
            counts = batches.label_counts(scores.shape[-1])[c : c + 1]
            loss = F.cross_entropy(shifted(scores, counts, train)[0], batch.y[c, valid])
            optimizer.step(loss + proximal(alone, start, train.proximal_mu)[0])
        changes.append(subtract({k: v.detach() for k, v in params.items()}, start))
    return {k: torch.stack([change[k] for change in changes]) for k in start}


def train_centrally(
    start: Params,
    logits: Callable[[Params, Tensor], Tensor],
    data: Labelled,
    train: TrainConfig,
    rng: torch.Generator,
) -> Params:
    """`train.local_epochs` passes over one labelled set on the server.

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
    optimizer = Optimizer(list(params.values()), train)
    for _ in range(train.epochs(1)):
        order = torch.randperm(len(data), generator=rng).to(data.labels.device)
        for rows in order.split(train.batch_size):
            loss = F.cross_entropy(logits(params, data.inputs[rows]), data.labels[rows])
            optimizer.step(loss)
    return {k: v.detach() for k, v in params.items()}
