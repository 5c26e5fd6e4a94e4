"""FedAdam (Reddi et al., 2021): the average change divided by its recent size.

m <- beta m + (1 - beta) d        v <- beta2 v + (1 - beta2) d^2
x <- x + lr m / (sqrt(v) + epsilon)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from fedsim.config.base import Section

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine.server_step import Moments
    from fedsim.params import Params


class Options(Section):
    """Settings of the two moments."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """beta 1."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """How much of the old squares stays."""
    epsilon: float = Field(1e-3, gt=0)
    """Adaptivity (tau in the paper)."""


def step(mean: Params, moments: Moments, lr: float, options: Options) -> tuple[Params, Moments]:
    """One step with the moving average of squares."""
    keep = options.beta2
    return adaptive_step(mean, moments, lr, options, lambda v, s: keep * v + (1 - keep) * s)


def adaptive_step(
    mean: Params,
    moments: Moments,
    lr: float,
    options: Options,
    second: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Params, Moments]:
    """What Adam and Yogi share: `second` makes the new v of the old one and of d^2."""
    zeros = {k: d.new_zeros(d.shape) for k, d in mean.items()}
    old_m, old_v, beta = moments.get("m", zeros), moments.get("v", zeros), options.momentum
    m = {k: beta * old_m[k] + (1 - beta) * d for k, d in mean.items()}
    v = {k: second(old_v[k], d.square()) for k, d in mean.items()}
    return {k: lr * m[k] / (v[k].sqrt() + options.epsilon) for k in mean}, {"m": m, "v": v}
