"""Training of cache keys in dual form: exact for SGD, and cheaper by a factor of the key length.

The loss reads a client's keys K `(M, d)` through their cosines with its samples F `(n, d)`. Every
gradient is therefore a combination of the samples, and so is every step of SGD:

    K_t = a_t K_0 + C_t^T F             C (n, M) starts at 0, a at 1
    F K_t^T = a_t (F K_0^T) + (F F^T) C_t

A step on a batch with cosines s `(B, M)` and slopes D = dL/ds changes the rows of C that belong to
the batch. Momentum, weight decay and the proximal term are linear in K, hence in (a, C):

    velocity of C  <-  momentum * velocity + D in the batch's rows + (decay + mu) C
    velocity of a  <-  momentum * velocity + decay a + mu (a - 1)

For e epochs of B samples a step, direct training takes 4 e n M d multiplications, and every step
reads and writes keys, gradients and velocities of M d numbers. The dual form takes 4 n M d once,
and 2 e n^2 M. It is faster if n is smaller than d, and the gain grows with the number of epochs.
Adam divides by elements of K, so it has no such form.

A client's update stays in the two factors of C^T F until code reads the tensor. The sum over
clients of w C^T F is one product over all their samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.methods.base import Batch, Batches, Update
from fedsim.methods.training import LabelLoss
from fedsim.params import Product


def train_keys(
    keys: Tensor,
    values: Tensor,
    known: Callable[[Tensor], Tensor],
    ratio: float,
    sharpness: float,
    batches: Batches,
) -> Update:
    """The same as `train_locally` on keys under SGD, up to rounding.

    The model is `known(F) + ratio * exp(sharpness * (F keys^T - 1)) values`.

    Args:
        keys: `(M, d)`, the start of all clients.
        values: `(M, num_classes)`.
        known: Features `(C, n, d)` -> the part of the logits that does not depend on keys,
            `(C, n, num_classes)`.
        ratio: Weight of the cache's logits.
        sharpness: Sharpness of the affinity.
        batches: The group's local data; `train.optimizer` is sgd.

    Returns:
        Each client's change of `keys`, `(C, M, d)`. It is a `Product`, or a tensor under weight
        decay or a proximal term, which add a multiple of the keys.
    """
    train, device = batches.train, batches.device
    own, steps = _own_rows(batches)
    f = batches.prepare(batches.inputs[own.to(batches.inputs.device)].to(device))
    fixed, start, gram = known(f), f @ keys.mT, f @ f.mT
    decay = train.weight_decay + train.proximal_mu
    coefficients = torch.zeros_like(start)
    velocity = torch.zeros_like(start) if train.momentum or decay else None
    share = torch.ones(len(f), 1, 1, device=device)
    share_velocity = torch.zeros_like(share)
    loss, readout = LabelLoss(batches), _readout(values)
    for (step, valid), (places, seen) in zip(batches.steps, steps, strict=True):
        mask, at = valid.to(device), places.to(device)
        y = batches.labels[step.to(batches.labels.device)].to(device)
        near = _taken(start, at).mul_(sharpness * share).sub_(sharpness)
        if seen:  # no other row has a coefficient yet
            pairs = _taken(gram, at)[..., :seen]
            near = torch.baddbmm(near, pairs, coefficients[:, :seen], alpha=sharpness)
        near.exp_()
        logits = _taken(fixed, at) + ratio * readout.sums(near)
        batch = Batch(logits.requires_grad_(), y, mask, mask.any(1))
        (slope,) = torch.autograd.grad(loss(logits, batch).sum(), logits)
        slope = readout.spread(near, slope.mul_(ratio * sharpness))  # dL/ds
        # Finished clients stand still.
        lr = train.lr * batch.active.to(slope)[:, None, None]
        if velocity is None:
            _add_rows(coefficients, at, slope.mul_(-lr))
            continue
        velocity.mul_(train.momentum)
        if decay:
            velocity.add_(coefficients, alpha=decay)
        _add_rows(velocity, at, slope)
        coefficients.addcmul_(lr, velocity, value=-1)
        pull = train.weight_decay * share + train.proximal_mu * (share - 1)
        share_velocity = train.momentum * share_velocity + pull
        share = share - lr * share_velocity
    change = Product(coefficients, f, gram)
    if decay:
        return Update({"keys": change.formed() + (share - 1) * keys}, batches.num_samples)
    return Update({}, batches.num_samples, products={"keys": change})


class _ByProduct:
    """The product `near values`, and the slope of `near` from the product's slope."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def sums(self, near: Tensor) -> Tensor:
        """`(C, B, M)` -> `(C, B, num_classes)`."""
        return near @ self._values

    def spread(self, near: Tensor, slope: Tensor) -> Tensor:
        """Slope `(C, B, num_classes)` -> `near` times every key's slope; overwrites `near`."""
        return near.mul_(slope @ self._values.mT)


class _ByClass(_ByProduct):
    """The same without multiplications: one-hot values, equally many keys per class, in order."""

    def sums(self, near: Tensor) -> Tensor:
        return self._by_class(near).sum(-1)

    def spread(self, near: Tensor, slope: Tensor) -> Tensor:
        self._by_class(near).mul_(slope[..., None])
        return near

    def _by_class(self, near: Tensor) -> Tensor:
        return near.unflatten(-1, (self._values.shape[1], -1))


def _readout(values: Tensor) -> _ByProduct:
    num_keys, num_classes = values.shape
    if num_keys % num_classes == 0:
        classes = torch.eye(num_classes, dtype=values.dtype, device=values.device)
        if torch.equal(values, classes.repeat_interleave(num_keys // num_classes, 0)):
            return _ByClass(values)
    return _ByProduct(values)


def _taken(rows: Tensor, at: Tensor) -> Tensor:
    """A copy of rows `(C, B, m)` of `(C, n, m)`; places `(C, B)` are counted over all clients."""
    return rows.flatten(0, 1).index_select(0, at.flatten()).view(*at.shape, -1)


def _add_rows(rows: Tensor, at: Tensor, more: Tensor) -> None:
    """Add `(C, B, m)` to the rows that `_taken` copies."""
    rows.flatten(0, 1).index_add_(0, at.flatten(), more.flatten(0, 1))


def _own_rows(batches: Batches) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """The rows that clients step on, once each and in the order of their first step.

    Returns:
        `(C, n)` int64 rows into `inputs`, padded with a row of the client. Per step, the places
        `(C, B)` of its rows among these, counted over all clients (padding has the client's first
        place), and the largest number of a client's places that earlier steps have visited.
    """
    steps = [(rows.numpy(), mask.numpy()) for rows, mask in batches.steps]
    own, ranks = [], []
    for c in range(batches.num_clients):
        stepped_on = np.concatenate([rows[c, mask[c]] for rows, mask in steps])
        rows, first = np.unique(stepped_on, return_index=True)
        order = first.argsort()
        own.append(rows[order])
        ranks.append((rows, order.argsort()))
    size = max(1, *map(len, own))
    padded = [
        np.resize(o, size) if len(o) else steps[0][0][c][:1].repeat(size) for c, o in enumerate(own)
    ]
    first_of, found, seen = size * np.arange(len(own))[:, None], [], 0
    for rows, mask in steps:
        places = np.zeros(rows.shape, dtype=np.int64)
        for c, (sorted_rows, rank) in enumerate(ranks):
            places[c, mask[c]] = rank[np.searchsorted(sorted_rows, rows[c, mask[c]])]
        found.append((torch.from_numpy(first_of + places), seen))
        seen = max(seen, int(places.max()) + 1)
    return torch.from_numpy(np.stack(padded)), found
