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

from functools import cached_property
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import nn

from fedsim.errors import ConfigError
from fedsim.methods.base import State, Task
from fedsim.methods.fedavg_finetune import TEXT, FedAvgFinetune
from fedsim.methods.shared.require import require_clip, require_text
from fedsim.models.lora_tower import lora_tower
from fedsim.params import Params


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


class LoRA(FedAvgFinetune):
    """Federated averaging of low-rank adapters inside the image encoder."""

    frozen = ("visual",)
    Options = LoRAOptions
    options: LoRAOptions

    @cached_property
    def tower(self) -> nn.Module:
        """The image encoder with adapters."""
        clip, wanted = require_clip(self.task, "adapts the image encoder"), self.options
        try:
            return lora_tower(clip, wanted.rank, wanted.alpha, wanted.target_modules)
        except ConfigError as error:
            raise ConfigError(
                f"methods.{self.config.method}.options.target_modules: {error}"
            ) from error

    def check_task(self) -> None:
        assert self.tower

    def is_trained(self, name: str) -> bool:
        return ".lora_B." in name or (".lora_A." in name and self.options.variant == "fedit")

    def setup(self, task: Task, rng: torch.Generator) -> State:
        model = {TEXT: require_text(task)}
        for name, p in self.tower.named_parameters():
            if ".lora_A." in name:  # uniform by the fan-in, as peft and torch start a layer
                bound = p[0].numel() ** -0.5
                drawn = torch.empty(p.shape).uniform_(-bound, bound, generator=rng)
                model[name] = drawn.to(task.device)
            elif ".lora_B." in name:
                model[name] = torch.zeros_like(p)
        return model

    def constants(self, state: State) -> Params:
        return {name: v for name, v in state.items() if not self.is_trained(name)}
