"""FedYogi (Reddi et al., 2021): FedAdam whose second moment moves in small steps.

v <- v - (1 - beta2) d^2 sign(v - d^2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.engine.server_optimisers.adam import Options as Options
from fedsim.engine.server_optimisers.adam import adaptive_step

if TYPE_CHECKING:
    from fedsim.engine.server_step import Moments
    from fedsim.params import Params


def step(mean: Params, moments: Moments, lr: float, options: Options) -> tuple[Params, Moments]:
    """One step with Yogi's second moment."""
    rate = 1 - options.beta2
    return adaptive_step(mean, moments, lr, options, lambda v, s: v - rate * s * (v - s).sign())
