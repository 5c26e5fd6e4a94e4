"""Federated LoRA of CLIP's image encoder under frozen text embeddings.

    y      = W x + (alpha / rank) B A x       in every adapted layer; W frozen, B starts as 0
    logits = scale * norm(g(x; A, B)) text^T

    fedit  (Zhang et al., arXiv 2305.05644)    every client trains A and B
           A <- sum_k (n_k / n) A_k,  B <- sum_k (n_k / n) B_k
    ffa    (FFA-LoRA, Sun et al., arXiv 2403.12313)    A stays at its start, the same for all
           B <- sum_k (n_k / n) B_k

With ffa the server's model is the mean of the clients' models, because `mean(B_k) A = mean(B_k A)`.
With fedit it is not: the mean of products is not the product of means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Method, Predictor, Received, State, Task, Update
from fedsim.methods.fedavg_finetune import TEXT
from fedsim.methods.shared.require import require_clip, require_text
from fedsim.methods.training import train_locally
from fedsim.models.cache import text_logits
from fedsim.models.lora_tower import lora_tower
from fedsim.params import Params, add


class LoRAOptions(BaseModel, extra="forbid"):
    """The trained products and their layers."""

    variant: Literal["fedit", "ffa"] = "fedit"
    """Train and average A and B, or B alone."""
    rank: int = Field(4, gt=0)
    alpha: float = Field(8.0, gt=0)
    """The products are scaled by `alpha / rank`."""
    target_modules: list[str] | None = Field(None, min_length=1)
    """Layers by the end of their names, such as `q_proj`; `fedsim.models.lora_tower` has the
    default."""


class LoRA(Method):
    """Federated averaging of low-rank adapters inside the image encoder."""

    inputs = "pixels"
    Options = LoRAOptions
    options: LoRAOptions

    def check_task(self) -> None:
        assert self._tower

    def setup(self, task: Task, rng: torch.Generator) -> State:
        text, adapters = require_text(task), {}
        for name, p in self._tower.named_parameters():
            if ".lora_A." in name:  # uniform by the fan-in, as peft and torch start a layer
                bound = p[0].numel() ** -0.5
                drawn = torch.empty(p.shape).uniform_(-bound, bound, generator=rng)
                adapters[name] = drawn.to(task.device)
            elif ".lora_B." in name:
                adapters[name] = torch.zeros_like(p)
        return {"adapters": adapters, "text": text}

    def constants(self, state: State) -> Params:
        frozen = {k: v for k, v in state["adapters"].items() if not self._trains(k)}
        return {TEXT: state["text"], **frozen}

    def message(self, state: State) -> Params:
        return {k: v for k, v in state["adapters"].items() if self._trains(k)}

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        trained = {name: value for name, value in message.items() if self._trains(name)}
        delta = train_locally(trained, partial(self.client_logits, message), batches)
        return Update(delta, weight=batches.num_samples), client_state

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        frozen = {k: v for k, v in message.items() if k not in params and k != TEXT}
        encode = partial(_encode, self._tower)  # the tower is built here, outside of the transform
        features = vmap(lambda own, x: encode({**frozen, **own}, x))(params, x)
        return text_logits(features, message[TEXT], self.task.logit_scale)

    def aggregate(self, state: State, received: Received) -> State:
        return state | {"adapters": add(state["adapters"], received.mean)}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return lambda x: text_logits(
            _encode(self._tower, state["adapters"], x), state["text"], self.task.logit_scale
        )

    def _trains(self, name: str) -> bool:
        return ".lora_B." in name or (".lora_A." in name and self.options.variant == "fedit")

    @cached_property
    def _tower(self) -> nn.Module:
        clip, wanted = require_clip(self.task, "adapts the image encoder"), self.options
        try:
            return lora_tower(clip, wanted.rank, wanted.alpha, wanted.target_modules)
        except ConfigError as error:
            raise ConfigError(
                f"methods.{self.config.method}.options.target_modules: {error}"
            ) from error


def _encode(tower: nn.Module, adapters: Params, x: Tensor) -> Tensor:
    return F.normalize(functional_call(tower, adapters, (x,)), dim=-1)
