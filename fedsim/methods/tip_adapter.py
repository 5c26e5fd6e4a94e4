"""Tip-Adapter (Zhang et al., ECCV 2022) on the server's generated images: a cache nobody trains.

affinity = exp(-beta * (1 - f keys^T))                                        (equation 4)
logits   = scale * f text^T + alpha * affinity values                         (equation 5)

It is CacheFL's model at round 0, so the difference between the two is what clients' training adds.
Tip-Adapter fills its cache with labelled images; here they are generated (`cache.init`).
"""

from __future__ import annotations

from fedsim.methods.cachefl import CacheFL


class TipAdapter(CacheFL):
    """One evaluation of the initial cache, at round 0."""

    role = "control"
    trains = False
    uses_clients = False
