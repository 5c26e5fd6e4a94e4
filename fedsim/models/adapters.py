"""The one layer that small adapters on features are made of, with or without a client axis."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.params import Params


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias`, per client where all have a leading client axis.

    Args:
        x: `(..., B, num_in)`.
        weight: `(..., num_out, num_in)`.
        bias: `(..., num_out)`.

    Returns:
        `(..., B, num_out)`.
    """
    product = x @ weight.mT
    return product if bias is None else product + bias[..., None, :]


def draw_linear(
    name: str, num_in: int, num_out: int, rng: torch.Generator, bias: bool = True
) -> Params:
    """A layer's start, uniform in +-1/sqrt(num_in): torch's own for `nn.Linear`, from `rng`.

    Returns:
        `{name}.weight` `(num_out, num_in)` and, unless left out, `{name}.bias` `(num_out,)`.
    """
    bound = num_in**-0.5
    shapes = {"weight": (num_out, num_in)} | ({"bias": (num_out,)} if bias else {})
    return {
        f"{name}.{part}": torch.empty(shape).uniform_(-bound, bound, generator=rng)
        for part, shape in shapes.items()
    }
