"""Control: the server trains on its own generated set, and no client takes part.

It has the same prior knowledge as CacheFL: frozen CLIP, text and generator. A federated method that
does not beat it shows the value of its generator, not its own. `options.model` is one of

    head    W (N, d) on top of the features, started from the text   (a linear probe)
    cache   the keys, started from the generated features            (Tip-Adapter-F on synthesis)

`synthetic_only_classifier` is the same with the network of `fedavg`. A round is
`train.local_epochs` passes over the set, so that rounds compare with federated ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.methods.base import Executor, Received, State
from fedsim.methods.shared.control import Control, NetworkControl
from fedsim.methods.training import train_centrally
from fedsim.params import Params


class SyntheticOnly(Control):
    """Centralised training on generated images."""

    uses_clients = False

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return True

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        def logits(params: Params, x: Tensor) -> Tensor:
            return self.predictor(state | params)(self.task.prepare(x))

        assert self.task.synthetic is not None
        train = self.config.train.at(received.round)
        return state | train_centrally(self.trained(state), logits, self.task.synthetic, train, rng)

    def trained(self, state: State) -> Params:
        """The part of the state that is trained."""
        name = "keys" if self.options.model == "cache" else "head"
        return {name: state[name]}


class SyntheticOnlyClassifier(NetworkControl, SyntheticOnly):
    """Centralised training of a network on generated images."""

    def trained(self, state: State) -> Params:
        return state
