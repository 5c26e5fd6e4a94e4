"""FedAvgM (Hsu et al., 2019): m <- beta m + d, x <- x + lr m."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from fedsim.config.base import Section

if TYPE_CHECKING:
    from fedsim.engine.server_step import Moments
    from fedsim.params import Params


class Options(Section):
    """Settings of the momentum."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """How much of the last step stays."""


def step(mean: Params, moments: Moments, lr: float, options: Options) -> tuple[Params, Moments]:
    """The sum of all changes so far, older ones counting less, times `lr`."""
    old = moments.get("m") or {k: d.new_zeros(d.shape) for k, d in mean.items()}
    m = {k: options.momentum * old[k] + d for k, d in mean.items()}
    return {k: lr * value for k, value in m.items()}, {"m": m}
