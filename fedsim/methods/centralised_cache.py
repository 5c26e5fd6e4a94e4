"""A ceiling: the cache of `cachefl`, its keys trained on all clients' data in one place.

This is Tip-Adapter-F (Zhang et al., ECCV 2022) on pooled data, from the keys that `cache.init`
names: what CacheFL loses to it is the price of the split, not of the model.
"""

from __future__ import annotations

from fedsim.methods.cachefl import CacheFL


class CentralisedCache(CacheFL):
    """The cache's keys on pooled data."""

    pooled = True
