"""A ceiling: the linear head of `fedavg_head`, trained on all clients' data in one place.

The same local training, with one client that holds everything: what FedAvg loses to this is the
price of the split, not of the model.
"""

from __future__ import annotations

from fedsim.methods.fedavg_head import FedAvgHead


class CentralisedHead(FedAvgHead):
    """The classifier's weights on pooled data."""

    pooled = True
