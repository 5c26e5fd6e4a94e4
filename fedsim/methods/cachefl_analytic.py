"""Ours: CacheFL with values in closed form, followed by fine-tuning of the keys.

    keys      (M, d)   as in CacheFL; M = N*K, or N from the text
    A(f)    = exp(-beta * (1 - f keys^T))                                   (1, M) per image
    logits  = scale * f text^T + alpha * A(f) values

    round 1:     client k sends  A_k^T A_k  and  A_k^T Y_k    (Y one-hot labels)
                 values <- (A^T A + ridge * I)^(-1) A^T Y     of sums: the same for any split
    rounds 2-R:  CacheFL: clients fine-tune the keys (and others of cache.trainable) from there,
                 the server averages; train.logit_adjustment is meant for these

CacheFL's values are one-hot: every key votes for its class, even if keys of other classes are near.
Fitted values make the cache a radial basis function network (Broomhead & Lowe, 1988) on the unit
sphere. Its output layer is a linear least-squares problem, so sums over clients are enough.

The method joins AFL's exact sums (He et al., arXiv 2405.16240) with CacheFL's cache; no paper has
it. `options.text: residual` regresses Y - softmax(scale f text^T) instead. `options.finetune:
false` ends after round 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, Field

from fedsim.config import MethodConfig
from fedsim.methods.base import Batches, Generators, Received, State, States, Task, Update
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.shared.statistics import (
    class_targets,
    normal_equations,
    plain_sums,
    regressed,
    totals,
)
from fedsim.models.cache import affinity
from fedsim.params import Params


class AnalyticOptions(BaseModel, extra="forbid", allow_inf_nan=False):
    """The fit of the values, and whether keys are trained afterwards."""

    ridge: float = Field(1e-3, gt=0)
    """In units of the mean eigenvalue of A^T A."""
    text: Literal["beside", "residual"] = "beside"
    finetune: bool = True


class CacheFLAnalytic(CacheFL):
    """One exact round for the values of the cache, the others for its keys."""

    averages = False  # round 1 sends sums
    Options = AnalyticOptions
    options: AnalyticOptions

    @classmethod
    def num_rounds(cls, config: MethodConfig) -> int:
        finetune = AnalyticOptions.model_validate(config.options).finetune
        return config.train.rounds if finetune else min(1, config.train.rounds)

    def setup(self, task: Task, rng: torch.Generator) -> State:
        state = super().setup(task, rng)
        return state | {"values": torch.zeros_like(state["values"]), "fitted": False}

    def constants(self, state: State) -> Params:
        return {"text": state["text"]}

    def message(self, state: State) -> Params:
        if not state["fitted"]:
            return {"keys": state["keys"]}  # without values the message asks for sums
        return super().message(state) | {"values": state["values"]}

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        if "values" in message:
            return super().client_update(message, batches, client_state, rng)
        keys, sharpness = message["keys"].double(), self.config.cache.sharpness
        targets = class_targets(
            self.task, message["text"] if self.options.text == "residual" else None
        )
        sums = normal_equations(batches, lambda f: affinity(f, keys, sharpness), targets)
        return plain_sums(sums, batches), client_state

    def aggregate(self, state: State, received: Received) -> State:
        if state["fitted"] or not received.mean:  # without a mean, every client failed
            return super().aggregate(state, received)
        values = regressed(totals(received), self.options.ridge)
        return state | {"values": values.to(state["values"].dtype), "fitted": True}
