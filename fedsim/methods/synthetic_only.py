"""Control: the server trains on its own generated set, and no client takes part.

It has the same prior knowledge as CacheFL: frozen CLIP, text and generator. A federated method that
does not beat it shows the value of its generator, not its own. `options.model` is one of

    head    W (N, d) on top of the features, started from the text   (a linear probe)
    cache   the keys, started from the generated features            (Tip-Adapter-F on synthesis)

A round is `train.local_epochs` passes over the set, so that rounds compare with federated ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.methods.base import Executor, Method, Predictor, Received, State, Task
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.shared.require import require_text
from fedsim.methods.training import train_centrally
from fedsim.models.cache import text_logits
from fedsim.params import Params


class SyntheticOnlyOptions(BaseModel, extra="forbid"):
    """The model that is trained on the generated set."""

    model: Literal["head", "cache"] = "head"


class SyntheticOnly(Method):
    """Centralised training on generated images."""

    uses_clients = False
    sections = ("cache",)
    Options: ClassVar[type[BaseModel]] = SyntheticOnlyOptions
    options: SyntheticOnlyOptions

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return True

    def setup(self, task: Task, rng: torch.Generator) -> State:
        if self._cache:
            return self._cache.setup(task, rng)
        return {"head": require_text(task).clone()}

    def aggregate(self, state: State, received: Received) -> State:
        return state

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
        name = "keys" if self._cache else "head"
        return {name: state[name]}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        if self._cache:
            return self._cache.predictor(state)
        return lambda x: text_logits(x, state["head"], self.task.logit_scale)

    @property
    def _cache(self) -> CacheFL | None:
        return CacheFL(self.task, self.options) if self.options.model == "cache" else None
