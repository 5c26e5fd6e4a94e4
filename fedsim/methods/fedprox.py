"""FedProx (Li et al., MLSys 2020) of a classifier trained from scratch on images.

    round:  every client minimises  F_k(w_k) + mu / 2 |w_k - w|^2          (equation 2)
            w <- sum_k (n_k / n) w_k

`train.proximal_mu` is mu. Every method's local loss has this term, so that this file only refuses
mu = 0.
"""

from __future__ import annotations

from fedsim.config import MethodConfig, TrainConfig
from fedsim.errors import ConfigError
from fedsim.methods.fedavg import FedAvg


class FedProx(FedAvg):
    """Federated averaging of a network's weights with a proximal term."""

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        super().check(config)
        require_proximal(config.train, without="fedavg")


def require_proximal(train: TrainConfig, without: str) -> None:
    """Refuse mu = 0, which makes FedProx the method `without`."""
    if train.proximal_mu == 0:
        raise ConfigError(
            f"FedProx without its proximal term is {without}: set train.proximal_mu above 0 "
            f"(its paper tries 0.001, 0.01, 0.1 and 1), or use {without}"
        )
