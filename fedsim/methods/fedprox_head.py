"""FedProx (Li et al., MLSys 2020) of a linear head on frozen features, started from the text.

logits = scale * f W^T,   W (N, d) starts as CLIP's class embeddings
round:  every client minimises  F_k(W_k) + mu / 2 |W_k - W|^2          (equation 2)
        W <- sum_k (n_k / n) W_k

`train.proximal_mu` is mu; it is part of every method's local loss, so that this file only says
where it may not be 0.
"""

from __future__ import annotations

from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.methods.fedavg_head import FedAvgHead


class FedProxHead(FedAvgHead):
    """Federated averaging of the classifier's weights with a proximal term."""

    @classmethod
    def check(cls, config: Experiment) -> None:
        super().check(config)
        if config.train.proximal_mu == 0:
            raise ConfigError(
                "FedProx without its proximal term is fedavg_head: set train.proximal_mu above 0 "
                "(its paper tries 0.001, 0.01, 0.1 and 1), or use fedavg_head"
            )
