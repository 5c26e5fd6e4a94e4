"""Ceilings: the head, the cache and the network, trained on all clients' data in one place.

Local training is that of the federated method, with one client that holds everything. The distance
of a federated method to its ceiling is the price of the split; the model is the same.
"""

from __future__ import annotations

from fedsim.methods.cachefl import CacheFL
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.fedavg_head import FedAvgHead


class CentralisedHead(FedAvgHead):
    """The linear head of `fedavg_head` on pooled data."""

    pooled = True


class CentralisedCache(CacheFL):
    """The cache of `cachefl` on pooled data: Tip-Adapter-F (Zhang et al., ECCV 2022)."""

    pooled = True


class CentralisedClassifier(FedAvg):
    """The network of `fedavg` on pooled data."""

    pooled = True
