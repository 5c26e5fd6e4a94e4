"""Ours: a cache whose keys, values and prior follow from exact sums over clients.

CacheFL asks a generator for class-balanced images. Here the server draws a class-balanced set in
feature space, from class Gaussians that clients' sums determine. It then solves for the values
instead of fixing them. This takes two rounds of sums, and the result is the same for any partition.

    f (B, d)      features of the frozen encoder, length 1        N  classes, K  keys per class
    mu_c, S       class means and shared covariance               W, b  their linear discriminant
    keys (N*K, d) values (N*K, N)  beta = cache.sharpness         alpha = cache.residual_ratio

    a(f)    = exp(-beta (1 - f keys^T))
    logits  = f W^T + b + tau f T^T + alpha a(f) values

    round 1   clients send   n_c, sum f y^T, sum f f^T
              server         mu, S' = S + shrinkage tr(S)/d I;   W, b from S'^-1 mu
                             keys <- K draws of N(mu_c, S') per class, scaled to length 1
    round 2   clients send   sum a a^T, sum a y^T
              server         values <- (A^T A + ridge I)^-1 A^T Y
    round 3.. clients fine-tune the keys, the server averages, as in CacheFL

`train.rounds: 2` stops at the closed form. Every part has an option that turns it off: `prior:
text` leaves the discriminant out, `keys: cache` takes the keys of `cache.init`, `values: one_hot`
solves nothing. With `links`, round 2 regresses on (a, f) instead of a: direct links beside random
features (Pao et al., 1994). AFL's head is the special case without keys.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Executor, Generators, Received, State, States, Task, Update
from fedsim.methods.cachefl import CacheFL, initial_keys
from fedsim.methods.shared.averaged import AveragedModel
from fedsim.methods.shared.dual import train_keys
from fedsim.methods.shared.require import require_text
from fedsim.methods.shared.statistics import (
    class_gaussians,
    class_targets,
    discriminant,
    normal_equations,
    one_hot,
    plain_sums,
    regressed,
    shrunk,
    square,
    totals,
)
from fedsim.models.cache import affinity, text_logits
from fedsim.params import Params, add


class StatCacheOptions(BaseModel, extra="forbid"):
    """The parts of the cache that statistics determine."""

    prior: Literal["gaussian", "text"] = "gaussian"
    """The classifier that the cache corrects: the Gaussian discriminant or CLIP's text."""
    keys: Literal["gaussian", "cache"] = "gaussian"
    """Keys drawn from the class Gaussians, or the keys of `cache.init`."""
    values: Literal["solved", "one_hot"] = "solved"
    """Values from the second round's regression, or the keys' classes as in CacheFL. The latter
    need no second round."""
    links: bool = False
    """Solve for a linear map of the features beside the values; AFL does so without a cache."""
    shrinkage: float = Field(0.1, gt=0)
    """Shrinkage of the covariance towards a multiple of the identity."""
    text_weight: float = Field(0.0, ge=0)
    """tau: weight of `f T^T` beside the discriminant."""
    ridge: float = Field(1e-3, gt=0)
    """Damping of the values, relative to the mean eigenvalue of A^T A."""


class StatCache(AveragedModel):
    """A cache from exact statistics, then federated fine-tuning of its keys."""

    sections = ("cache",)
    averages = False
    Options = StatCacheOptions
    options: StatCacheOptions

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        super().check(config)
        fixed = config.options.get("values") == "one_hot"
        if config.train.rounds < 2 and not fixed:
            raise ConfigError(
                "the statistics cache takes two rounds: set train.rounds to 2 or more"
            )
        if fixed and config.options.get("links"):
            raise ConfigError(
                "options.links is solved together with the values: leave out values one_hot"
            )

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return config.options.get("keys") == "cache" and CacheFL.needs_synthetic(config)

    @classmethod
    def needs_public(cls, config: MethodConfig) -> bool:
        return config.options.get("keys") == "cache" and CacheFL.needs_public(config)

    def setup(self, task: Task, rng: torch.Generator) -> State:
        text = require_text(task)
        prior = {"weights": task.logit_scale * text, "bias": text.new_zeros(len(text))}
        state: State = {"text": text, **prior}
        if self.options.keys == "cache":
            state["keys"] = initial_keys(task, text, rng)[0]
        return state

    def is_trained(self, name: str) -> bool:
        return name == "keys"

    def constants(self, state: State) -> Params:
        return {}

    def message(self, state: State) -> Params:
        if "values" in state:  # round 3 on
            return {k: state[k] for k in ("keys", "values", "weights", "bias")}
        return {"keys": state["keys"]} if "seen" in state else {}

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        if "values" in message and self.config.cache.form == "direct":
            return super().client_update(message, batches, client_state, rng)
        if "values" in message:
            return self._train_keys(message, batches), client_state

        def seen(f: Tensor) -> Tensor:
            return self._activations(message["keys"].double(), f) if "keys" in message else f

        sums = normal_equations(batches, seen, class_targets(self.task))
        if "keys" not in message:
            sums["counts"] = batches.label_counts(self.task.num_classes).double()
        return plain_sums(sums, batches), client_state

    def _train_keys(self, message: Params, batches: Batches) -> Update:
        """The keys' training on cosines (`fedsim.methods.shared.dual`)."""
        cache, values = self.config.cache, message["values"]
        of_keys, of_features = values.split(
            [len(message["keys"]), len(values) - len(message["keys"])]
        )

        def known(f: Tensor) -> Tensor:
            logits = text_logits(f, message["weights"], 1.0) + message["bias"]
            return logits + cache.residual_ratio * f @ of_features if self.options.links else logits

        keys, ratio = message["keys"], cache.residual_ratio
        return train_keys(keys, of_keys, known, ratio, cache.sharpness, batches)

    def aggregate(self, state: State, received: Received) -> State:
        if not received.mean:  # every client failed
            return state
        if "values" in state:
            return add(state, received.mean)
        sums = totals(received)
        if "seen" in state:  # round 2
            return state | {"values": regressed(sums, self.options.ridge).float()}
        means, covariance = class_gaussians(
            sums["counts"],
            sums["cross"].mT,
            square(sums["second"], self.task.embed_dim),
            state["text"],
        )
        covariance = shrunk(covariance, self.options.shrinkage)
        state = state | {"seen": True, "means": means, "covariance": covariance}
        if self.options.prior == "text":
            return state
        weights, bias = discriminant(means, covariance)
        weights = weights + self.options.text_weight * state["text"]
        return state | {"weights": weights.float(), "bias": bias.float()}

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        if "values" in state or "seen" not in state:
            return state
        if "keys" not in state:
            state = state | {"keys": self._drawn(state["means"], state["covariance"], rng)}
        if self.options.values == "one_hot":
            classes = torch.arange(self.task.num_classes, device=state["keys"].device)
            per_class = len(state["keys"]) // len(classes)
            labels = classes.repeat_interleave(per_class)
            state = state | {"values": one_hot(labels, len(classes)).float()}
        return state

    def _drawn(self, means: Tensor, covariance: Tensor, rng: torch.Generator) -> Tensor:
        """K keys per class from its Gaussian, `(N*K, d)`, sorted by class."""
        count = self.config.cache.images_per_class
        size = (self.task.num_classes * count, self.task.embed_dim)
        noise = torch.randn(size, generator=rng, dtype=torch.float64).to(means.device)
        drawn = means.repeat_interleave(count, 0) + noise @ torch.linalg.cholesky(covariance).mT
        return F.normalize(drawn, dim=-1).float()

    def _activations(self, keys: Tensor, f: Tensor) -> Tensor:
        """The regressors that values weigh: `(..., M)`, or `(..., M + d)` with links."""
        near = affinity(f, keys, self.config.cache.sharpness)
        return torch.cat([near, f], dim=-1) if self.options.links else near

    def logits(self, model: Params, x: Tensor) -> Tensor:
        logits = text_logits(x, model["weights"], 1.0) + model["bias"]
        if "values" not in model:
            return logits
        cached = self._activations(model["keys"], x) @ model["values"]
        return logits + self.config.cache.residual_ratio * cached
