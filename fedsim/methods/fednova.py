"""FedNova (Wang et al., NeurIPS 2020) of a classifier trained from scratch on images.

    x      all weights of the network               |a_k|   client k's number of effective steps
    client k:  d_k = (x_k - x) / |a_k|              after its local steps from x to x_k
    server:    tau = sum_k (n_k / n) |a_k|
               x   <- x + tau * sum_k (n_k / n) d_k

In FedAvg a client that takes more steps counts for more; here it does not. With plain SGD `|a_k|`
is the number of steps. Momentum and a proximal term change it as in the paper (see
`fedsim.methods.training.effective_steps`). Both sums are linear in the clients' tensors.
"""

from __future__ import annotations

from fedsim.config import MethodConfig
from fedsim.methods.base import Batches, Generators, Received, State, States, Update
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.shared.namespaces import from_namespace
from fedsim.methods.shared.require import require_sgd
from fedsim.methods.training import effective_steps, minimise
from fedsim.params import Params, add, per_client

STEPS = "client/steps"
"""Name of `|a_k|` among a client's tensors."""


class FedNova(FedAvg):
    """Normalised averaging of a network's weights."""

    averages = False  # the mean is a step only once it is multiplied by tau

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        super().check(config)
        require_sgd(config.train, config.use)

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        change = minimise(message, self.loss(message, batches, client_state), batches)
        steps = effective_steps(batches.train, batches.num_steps).to(batches.device)
        delta = {k: v / per_client(steps.clamp_min(1), v) for k, v in change.items()}
        return Update(delta | {STEPS: steps}, batches.num_samples, change=change), client_state

    def aggregate(self, state: State, received: Received) -> State:
        if not received.mean:  # every client failed
            return state
        tau = received.mean[STEPS]
        return add(state, {k: tau * v for k, v in from_namespace(received.mean).items()})
