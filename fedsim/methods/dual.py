"""Training of cache keys in dual form: exact for SGD, and cheaper by what a key is long.

The loss sees the keys K `(M, d)` of a client through their cosines with its samples F `(n, d)`, so
every gradient is a combination of the samples, and with it every iterate of SGD:

    K_t = a_t K_0 + C_t^T F             C (n, M) starts at 0, a at 1
    F K_t^T = a_t (F K_0^T) + (F F^T) C_t

A step on a batch with cosines s `(B, M)` and slopes D = dL/ds adds to C in the rows of the batch.
Momentum, weight decay and the proximal term are linear in K and so in (a, C):

    velocity of C  <-  momentum * velocity + D in the batch's rows + (decay + mu) C
    velocity of a  <-  momentum * velocity + decay a + mu (a - 1)

Multiplications for e epochs, B samples a step: 4 e n M d directly, and every step also reads and
writes keys, gradients and velocities of M d numbers; here 4 n M d once and 2 e n^2 M. It pays where
n is smaller than d, the more the more epochs. Adam divides by elements of K and has no such form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.methods.base import Batch, Batches
from fedsim.methods.training import LabelLoss
from fedsim.params import Params

Read = Callable[[Tensor, Tensor], Tensor]
"""What of the logits does not depend on keys `(C, B, num_classes)`, and cosines `(C, B, M)` ->
logits `(C, B, num_classes)`."""


def train_keys(
    keys: Tensor, known: Callable[[Tensor], Tensor], read: Read, batches: Batches
) -> Params:
    """What `train_locally` does to keys under SGD, up to rounding.

    Args:
        keys: `(M, d)`, the start of all clients.
        known: Features `(C, n, d)` -> what of the logits does not depend on keys.
        read: The model on top of cosines.
        batches: The group's local data; `train.optimizer` is sgd.

    Returns:
        Each client's change, `keys` `(C, M, d)`.
    """
    train, device = batches.train, batches.device
    rows, places = _own_rows(batches)
    f = batches.prepare(batches.inputs[rows.to(batches.inputs.device)].to(device))
    fixed, start, gram = known(f), f @ keys.mT, f @ f.mT
    coefficients, velocity = torch.zeros_like(start), torch.zeros_like(start)
    share = torch.ones(len(f), 1, 1, device=device)
    share_velocity = torch.zeros_like(share)
    loss = LabelLoss(batches)
    for (step, valid), place in zip(batches.steps, places, strict=True):
        mask, at = valid.to(device), place.to(device)[..., None]
        y = batches.labels[step.to(batches.labels.device)].to(device)
        cosine = share * _taken(start, at) + _taken(gram, at) @ coefficients
        cosine.requires_grad_()
        batch = Batch(cosine, y, mask, mask.any(1))
        total = loss(read(_taken(fixed, at), cosine), batch).sum()
        (slope,) = torch.autograd.grad(total, cosine)
        # Finished clients stand still.
        lr = train.lr * batch.active.to(slope)[:, None, None]
        velocity.mul_(train.momentum)
        if train.weight_decay or train.proximal_mu:
            velocity.add_(coefficients, alpha=train.weight_decay + train.proximal_mu)
        velocity.scatter_add_(1, at.expand_as(slope), slope)
        coefficients.addcmul_(lr, velocity, value=-1)
        pull = train.weight_decay * share + train.proximal_mu * (share - 1)
        share_velocity = train.momentum * share_velocity + pull
        share = share - lr * share_velocity
    change = coefficients.mT @ f
    if train.weight_decay or train.proximal_mu:
        change += (share - 1) * keys
    return {"keys": change}


def _taken(rows: Tensor, at: Tensor) -> Tensor:
    """Rows `(C, n, m)` at places `(C, B, 1)`: `(C, B, m)`."""
    return rows.gather(1, at.expand(-1, -1, rows.shape[2]))


def _own_rows(batches: Batches) -> tuple[Tensor, list[Tensor]]:
    """The rows that clients step on, once each, and where in them every step's rows are.

    Returns:
        `(C, n)` int64 rows into `inputs`, padded with a row of the client; per step, `(C, B)`
        places in them, 0 for padding.
    """
    steps = [(rows.numpy(), mask.numpy()) for rows, mask in batches.steps]
    own = [
        np.unique(np.concatenate([rows[c, mask[c]] for rows, mask in steps]))
        for c in range(batches.num_clients)
    ]
    size = max(1, *map(len, own))
    padded = np.stack(
        [
            np.resize(o, size) if len(o) else steps[0][0][c][:1].repeat(size)
            for c, o in enumerate(own)
        ]
    )
    places = [
        torch.from_numpy(
            np.stack(
                [
                    np.where(mask[c], np.searchsorted(own[c], rows[c]), 0)
                    for c in range(batches.num_clients)
                ]
            )
        )
        for rows, mask in steps
    ]
    return torch.from_numpy(padded), places
