"""A ceiling: the network of `fedavg`, trained on all clients' data in one place.

The same local training, with one client that holds everything: what FedAvg loses to this is the
price of the split, not of the model.
"""

from __future__ import annotations

from fedsim.methods.fedavg import FedAvg


class CentralisedClassifier(FedAvg):
    """A network's weights on pooled data."""

    pooled = True
