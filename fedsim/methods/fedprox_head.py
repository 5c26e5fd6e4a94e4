"""FedProx (Li et al., MLSys 2020) of a linear head on frozen features, started from the text.

    logits = scale * f W^T,   W (N, d) starts as CLIP's class embeddings
    round:  every client minimises  F_k(W_k) + mu / 2 |W_k - W|^2          (equation 2)
            W <- sum_k (n_k / n) W_k

`train.proximal_mu` is mu (see `fedsim.methods.fedprox`).
"""

from __future__ import annotations

from fedsim.config import MethodConfig
from fedsim.methods.fedavg_head import FedAvgHead
from fedsim.methods.fedprox import require_proximal


class FedProxHead(FedAvgHead):
    """Federated averaging of the classifier's weights with a proximal term."""

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        super().check(config)
        require_proximal(config.train, without="fedavg_head")
