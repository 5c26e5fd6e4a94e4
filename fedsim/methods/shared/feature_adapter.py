"""A small network between CLIP's image features and its class embeddings, averaged by FedAvg.

logits = scale * norm(h(f; w)) text^T           w weights of the adapter h
round:   every client trains w on its own features;   w <- sum_k (n_k / n) w_k
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.methods.base import State, Task
from fedsim.methods.shared.averaged import AveragedModel, flattened
from fedsim.methods.shared.require import require_text
from fedsim.models.cache import text_logits
from fedsim.params import Params, to_device


class FeatureAdapter(AveragedModel):
    """Base of methods that average an adapter of the frozen encoder's features."""

    def draw(self, dim: int, rng: torch.Generator) -> Params:
        """The adapter's first weights, for features of `dim` numbers."""
        raise NotImplementedError

    def adapt(self, adapter: Params, f: Tensor) -> Tensor:
        """h: features `(..., d)` -> adapted features `(..., d)`, of any length."""
        raise NotImplementedError

    def is_trained(self, name: str) -> bool:
        return name != "text"

    def setup(self, task: Task, rng: torch.Generator) -> State:
        adapter = to_device(self.draw(task.embed_dim, rng), task.device)
        return {**adapter, "text": require_text(task)}

    def restored(self, state: State) -> State:
        return flattened(state)

    def logits(self, model: Params, x: Tensor) -> Tensor:
        adapted = F.normalize(self.adapt(model, x), dim=-1)
        return text_logits(adapted, model["text"], self.task.logit_scale)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias`, per client where all have a leading client axis.

    Args:
        x: `(..., B, num_in)`.
        weight: `(..., num_out, num_in)`.
        bias: `(..., num_out)`.

    Returns:
        `(..., B, num_out)`.
    """
    product = x @ weight.mT
    return product if bias is None else product + bias[..., None, :]


def draw_linear(
    name: str, num_in: int, num_out: int, rng: torch.Generator, bias: bool = True
) -> Params:
    """A layer's start, uniform in +-1/sqrt(num_in): torch's own for `nn.Linear`, from `rng`.

    Returns:
        `{name}.weight` `(num_out, num_in)` and, unless left out, `{name}.bias` `(num_out,)`.
    """
    bound = num_in**-0.5
    shapes = {"weight": (num_out, num_in)} | ({"bias": (num_out,)} if bias else {})
    return {
        f"{name}.{part}": torch.empty(shape).uniform_(-bound, bound, generator=rng)
        for part, shape in shapes.items()
    }
