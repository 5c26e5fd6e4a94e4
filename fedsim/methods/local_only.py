"""Control: every client trains alone from the common start and sends nothing.

`options.model` names the model; local training is that of its federated method:

    head    W (N, d) on top of the features, started from the text       (as in fedavg_head)
    cache   the keys, started as `cache.init` says                       (as in cachefl)

`local_only_classifier` is the same with the network of `fedavg`. A client gains from a federated
method that serves it better than this control. There is no global model. Figures are means over the
clients' own models. A client that has not been sampled yet has the model of the start.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.methods.base import Batches, Generators, State, States, Update
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.shared.control import Control, NetworkControl
from fedsim.methods.training import train_apart
from fedsim.params import Params, add, stack, unstack


class LocalOnly(Control):
    """Local training without any aggregation."""

    averages = False
    personal = True

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return config.options.get("model") == "cache" and CacheFL.needs_synthetic(config)

    @classmethod
    def needs_public(cls, config: MethodConfig) -> bool:
        return config.options.get("model") == "cache" and CacheFL.needs_public(config)

    def constants(self, state: State) -> Params:
        return self.inner.constants(state) | self.inner.message(state)  # the start, once

    def message(self, state: State) -> Params:
        return {}

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        starts = stack(self.inner.message(dict(message)), batches.num_clients)
        for c, own in enumerate(client_state):
            for name, value in own.items():
                starts[name][c] = value
        logits = partial(self.client_logits, message)
        trained = add(starts, train_apart(starts, logits, batches))
        states = [
            {name: value.clone() for name, value in unstack(trained, c).items()}
            for c in range(batches.num_clients)
        ]
        return Update({}, weight=batches.num_samples), states

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        return self.inner.client_logits(message, params, x)


class LocalOnlyClassifier(NetworkControl, LocalOnly):
    """Local training of a network without any aggregation."""

    sections = ()
