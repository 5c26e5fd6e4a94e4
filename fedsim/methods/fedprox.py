"""FedProx (Li et al., MLSys 2020): FedAvg whose clients stay near what they received.

    round:  every client minimises  F_k(w_k) + mu / 2 |w_k - w|^2          (equation 2)
            w <- sum_k (n_k / n) w_k

w are the weights of a network trained from scratch (`fedprox`), or of a linear head on frozen
features (`fedprox_head`). `train.proximal_mu` is mu. Every method's local loss has this term, so
that this file only refuses mu = 0.
"""

from __future__ import annotations

from fedsim.config import MethodConfig
from fedsim.errors import ConfigError
from fedsim.methods.base import Method
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.fedavg_head import FedAvgHead


class Proximal(Method):
    """Refuses mu = 0, which makes FedProx the method `without`."""

    without: str

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        super().check(config)
        if config.train.proximal_mu == 0:
            raise ConfigError(
                f"FedProx without its proximal term is {cls.without}: set train.proximal_mu above "
                f"0 (its paper tries 0.001, 0.01, 0.1 and 1), or use {cls.without}"
            )


class FedProx(Proximal, FedAvg):
    """Federated averaging of a network's weights with a proximal term."""

    without = "fedavg"


class FedProxHead(Proximal, FedAvgHead):
    """Federated averaging of the classifier's weights with a proximal term."""

    without = "fedavg_head"
