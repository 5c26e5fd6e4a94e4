"""Control: Tip-Adapter (Zhang et al., ECCV 2022) on the server's generated images, untrained.

    affinity = exp(-beta * (1 - f keys^T))                                        (equation 4)
    logits   = scale * f text^T + alpha * affinity values                         (equation 5)

This is CacheFL's model at round 0. CacheFL's difference to it is the gain from clients' training.
Tip-Adapter fills its cache with labelled images. Here the images are generated (`cache.init`).
"""

from __future__ import annotations

from fedsim.methods.cachefl import CacheFL


class TipAdapter(CacheFL):
    """One evaluation of the initial cache, at round 0."""

    trains = False
    uses_clients = False
