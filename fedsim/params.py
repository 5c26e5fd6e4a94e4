"""Named tensors: what travels between server and clients, and sums of it that ignore order.

`Params` maps names to tensors. Where a leading axis C is mentioned, entry `[c]` belongs to the
c-th client of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]

_FRACTION_BITS = 40
_HEADROOM_BITS = 62
_EXACT_BITS = 53
"""Whole numbers below 2 to this power are exact in float64."""
_PIECE = 1 << 15
"""Columns that are worked on at once, so that they stay in a core's cache."""


def num_bytes(params: Mapping[str, Tensor]) -> int:
    """Size on the wire, counted from the tensors themselves.

    >>> num_bytes({"keys": torch.zeros(2, 3)})
    24
    """
    return sum(t.numel() * t.element_size() for t in params.values())


def stack(params: Params, num_clients: int) -> Params:
    """A copy per client on a new leading axis: shapes `(...)` become `(num_clients, ...)`."""
    return {k: v.unsqueeze(0).repeat(num_clients, *[1] * v.dim()) for k, v in params.items()}


def unstack(params: Params, client: int) -> Params:
    """One client's part of stacked tensors: shapes `(C, ...)` become `(...)`."""
    return {k: v[client] for k, v in params.items()}


def subtract(left: Params, right: Params) -> Params:
    """`left - right` by name; shapes broadcast, so `(C, ...) - (...)` works."""
    return {k: v - right[k] for k, v in left.items()}


def add(left: Params, right: Params) -> Params:
    """`left + right` by name, for the names of `right`; the others of `left` stay."""
    return left | {k: (left[k] + v).to(left[k].dtype) for k, v in right.items()}


def leaves(params: Params) -> Params:
    """The same tensors as leaves of a new graph."""
    return {k: v.detach().requires_grad_() for k, v in params.items()}


def per_client(numbers: Tensor, like: Tensor) -> Tensor:
    """One number per client, `(C,)`, as `(C, 1, ...)` with as many axes as `like`."""
    return numbers.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Product:
    """A stacked tensor `(C, m, d)` as `left[c]^T right[c]`, for sums that never form it.

    Attributes:
        left: `(C, n, m)`.
        right: `(C, n, d)`.
        gram: `right right^T`, `(C, n, n)`.
    """

    left: Tensor
    right: Tensor
    gram: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of one client's tensor on the wire."""
        return self.left.shape[2] * self.right.shape[2] * self.right.element_size()

    def __getitem__(self, clients: Any) -> Product:
        return Product(self.left[clients], self.right[clients], self.gram[clients])

    def formed(self) -> Tensor:
        """The tensor itself, `(C, m, d)`."""
        return self.left.mT @ self.right

    @cached_property
    def lengths(self) -> Tensor:
        """L2 norm of every client's tensor, `(C,)` in float64: the root of tr(left^T gram left)."""
        squares = (self.left * (self.gram @ self.left)).sum((1, 2), dtype=torch.float64)
        return squares.clamp_min(0).sqrt()

    def weighted_sum(self, weight: Tensor) -> Tensor:
        """Sum over clients of `weight` `(C,)` times the tensor, `(m, d)`: one product."""
        left = self.left * weight.to(self.left.dtype)[:, None, None]
        return left.flatten(0, 1).T @ self.right.flatten(0, 1)


def norms(params: Params, products: Mapping[str, Product] | None = None) -> Tensor:
    """L2 norm of every client's tensors together: `(C,)` in float64."""
    lengths = [
        torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64)
        for value in params.values()
        for piece in _pieces(_per_client(value))
    ]
    lengths += [product.lengths for product in (products or {}).values()]
    return torch.linalg.vector_norm(torch.stack(lengths), dim=0)


def _per_client(value: Tensor) -> Tensor:
    """`(C, ...)` as `(C, n)`; one number per client is `(C, 1)`."""
    return value.flatten(1) if value.dim() > 1 else value[:, None]


def _pieces(flat: Tensor) -> Sequence[Tensor]:
    """`(C, n)` in columns of a cache's size; a GPU takes all at once."""
    return flat.split(_PIECE, dim=1) if flat.device.type == "cpu" else (flat,)


class ExactSum:
    """A weighted sum of client tensors that is the same in any order and any grouping.

    Every term `w * u` is rounded to a multiple of 2**-40 and added in int64, which is exact and
    associative; partial sums made on different machines merge to the same bits. Weights are
    scaled by a power of two (exact) so that a cohort's weights add up to at most 1.

    Args:
        total_weight: Upper bound of the sum of all weights that will be added, > 0.
        max_terms: Upper bound of the number of clients that will be added.
    """

    def __init__(self, total_weight: float, max_terms: int) -> None:
        self._unit = 2.0 ** -math.ceil(math.log2(total_weight))
        self._limit = 2.0 ** (_HEADROOM_BITS - _FRACTION_BITS) / max(1, max_terms)
        self.sums: Params = {}
        self._double: set[str] = set()
        self.weight = 0
        self.num_clients = 0

    def refused(
        self, params: Params, weight: Tensor, products: Mapping[str, Product] | None = None
    ) -> list[tuple[int, str]]:
        """Clients whose tensors cannot be summed: (position on the client axis, reason)."""
        bad: dict[int, str] = {}
        possible = (weight >= 0) & (weight * self._unit < self._limit)
        for c in (~possible).nonzero().flatten().tolist():
            bad[c] = f"its weight is {float(weight[c]):g}"
        for name, value in params.items():
            flat = _per_client(value)
            if not flat.shape[1]:
                continue
            most_by_client = torch.stack([p.abs().amax(1) for p in _pieces(flat)]).amax(0)
            finite = most_by_client.isfinite()  # the largest of a NaN is NaN
            largest = most_by_client.double() * weight * self._unit
            for c in (~finite).nonzero().flatten().tolist():
                wrong = f"{int((~flat[c].isfinite()).sum())} of {flat.shape[1]} values of {name!r}"
                bad.setdefault(c, f"{wrong} are NaN or infinite")
            for c in (finite & ~(largest < self._limit)).nonzero().flatten().tolist():
                most = float(most_by_client[c])
                bad.setdefault(c, f"values of {name!r} are as large as {most:g}")
        for name, product in (products or {}).items():
            # No value exceeds the tensor's length, so only tensors that are too long are formed.
            fine = product.lengths * weight * self._unit < self._limit
            for c in (~fine).nonzero().flatten().tolist():
                alone = slice(c, c + 1)
                for _, reason in self.refused({name: product[alone].formed()}, weight[alone]):
                    bad.setdefault(c, reason)
        return sorted(bad.items())

    def add(
        self, params: Params, weight: Tensor, products: Mapping[str, Product] | None = None
    ) -> None:
        """Add stacked tensors `(C, ...)` with weights `(C,)`, none of them `refused`.

        Products are summed over this call's clients in their own precision, then rounded. The bits
        are the same if the same clients are added in one call; else they differ by rounding.
        """
        scaled = weight.double() * self._unit
        for name, value in params.items():
            self._add(name, value, scaled)
        for name, product in (products or {}).items():
            self._add(name, product.weighted_sum(scaled)[None], scaled.new_ones(1))
        self.weight += int((scaled * 2.0**_FRACTION_BITS).round().long().sum())
        self.num_clients += len(weight)

    def _add(self, name: str, values: Tensor, weight: Tensor) -> None:
        pieces = [_rounded_sum(piece, weight) for piece in _pieces(_per_client(values))]
        term = torch.cat(pieces).view(values.shape[1:])
        self.sums[name] = self.sums[name] + term if name in self.sums else term
        if values.dtype == torch.float64:
            self._double.add(name)

    def merge(self, other: ExactSum) -> None:
        """Add another partial sum of the same round."""
        if other._unit != self._unit:
            raise ValueError("partial sums of different rounds cannot be merged")
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self._double |= other._double
        self.weight += other.weight
        self.num_clients += other.num_clients

    def mean(self) -> Params:
        """The weighted mean, in float32, or float64 where that was added; empty without terms."""
        if self.weight == 0:
            return {}
        means = {k: v.double() / self.weight for k, v in self.sums.items()}
        return {k: mean if k in self._double else mean.float() for k, mean in means.items()}


def _rounded_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sum over C of `weight * values` in units of 2**-40, each term rounded: `(n,)` int64.

    Args:
        values: `(C, n)`.
        weight: `(C,)` float64.
    """
    scale = weight * 2.0**_FRACTION_BITS
    terms = values.double().mul_(scale[:, None]).round_()
    largest = float(values.abs().amax() * scale.amax()) if terms.numel() else 0.0
    if (largest + 1) * len(terms) < 2.0**_EXACT_BITS:
        return terms.sum(0).long()  # the same sum, for whole numbers this small
    return terms.long().sum(0)


def map_tensors(tree: Any, function: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """`function` of every tensor (or `kind`) in nested dicts, sequences and dataclasses."""
    if isinstance(tree, kind):
        return function(tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        parts = {f.name: map_tensors(getattr(tree, f.name), function, kind) for f in fields(tree)}
        return replace(tree, **parts)
    if isinstance(tree, dict):
        return {k: map_tensors(v, function, kind) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(v, function, kind) for v in tree)
    return tree


def to_device(tree: Any, device: torch.device | str) -> Any:
    """Every tensor of a tree (see `map_tensors`) on `device`."""
    return map_tensors(tree, lambda tensor: tensor.to(device))
