"""FedAvg (McMahan et al., 2017): x <- x + lr d."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.config.base import Section

if TYPE_CHECKING:
    from fedsim.engine.server_step import Moments
    from fedsim.params import Params


class Options(Section):
    """No settings beside `server.lr`."""


def step(mean: Params, moments: Moments, lr: float, options: Options) -> tuple[Params, Moments]:
    """The average change itself, times `lr`."""
    return (mean if lr == 1 else {k: lr * d for k, d in mean.items()}), moments
