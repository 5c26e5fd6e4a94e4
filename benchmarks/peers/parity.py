"""Whether two runners ended at the same weights.

Not to the bit: rounding grows along hundreds of steps, the more on a network with max pooling.
Another batch order, a step more or another weight of the mean are far beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_LEAST_WAY = 1e-4
"""Of the weights' length: a shorter way, as of clients that do nothing, counts as this one."""


class ParityError(Exception):
    """A runner did other work than the plain loop."""


def distance(
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    start: Mapping[str, np.ndarray],
) -> float:
    """How far `found` is from `wanted`, relative to how far that is from `start`.

    Raises:
        ParityError: Names or shapes differ, or a value is not finite.
    """
    shapes = [{k: v.shape for k, v in side.items()} for side in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise ParityError(f"the weights are {shapes[0]}, those of the plain loop {shapes[1]}")
    if not all(np.isfinite(value).all() for value in found.values()):
        raise ParityError("some weights are NaN or infinite")
    off = _length({k: found[k].astype(np.float64) - wanted[k] for k in wanted})
    way = _length({k: wanted[k].astype(np.float64) - start[k] for k in wanted})
    least = _LEAST_WAY * _length({k: start[k].astype(np.float64) for k in wanted})
    return off / max(way, least)


def check(
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    start: Mapping[str, np.ndarray],
    tolerance: float,
) -> float:
    """`distance`, if it is within `tolerance`.

    Raises:
        ParityError: It is not.
    """
    off = distance(found, wanted, start)
    if not off <= tolerance:
        raise ParityError(
            f"the final weights are off by {off:.2g} of the way that training went; at most "
            f"{tolerance:g} can be rounding"
        )
    return off


def _length(tensors: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(value).sum() for value in tensors.values())))
