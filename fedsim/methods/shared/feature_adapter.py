"""A small network between CLIP's image features and its class embeddings, averaged by FedAvg.

logits = scale * norm(h(f; w)) text^T           w weights of the adapter h
round:   every client trains w on its own features;   w <- sum_k (n_k / n) w_k
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.methods.base import Batches, Method, Predictor, Received, State, Task, Update
from fedsim.methods.shared.require import require_text
from fedsim.methods.training import train_locally
from fedsim.models.cache import text_logits
from fedsim.params import Params, add, to_device


class FeatureAdapter(Method):
    """Base of methods that average an adapter of the frozen encoder's features."""

    def draw(self, dim: int, rng: torch.Generator) -> Params:
        """The adapter's first weights, for features of `dim` numbers."""
        raise NotImplementedError

    def adapt(self, adapter: Params, f: Tensor) -> Tensor:
        """h: features `(..., d)` -> adapted features `(..., d)`, of any length."""
        raise NotImplementedError

    def setup(self, task: Task, rng: torch.Generator) -> State:
        adapter = self.draw(task.embed_dim, rng)
        return {"adapter": to_device(adapter, task.device), "text": require_text(task)}

    def constants(self, state: State) -> Params:
        return {"text": state["text"]}

    def message(self, state: State) -> Params:
        return dict(state["adapter"])

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        adapter = {name: value for name, value in message.items() if name != "text"}
        delta = train_locally(adapter, partial(self.client_logits, message), batches)
        return Update(delta, weight=batches.num_samples), client_state

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        return self._logits(params, x, message["text"])

    def aggregate(self, state: State, received: Received) -> State:
        return state | {"adapter": add(state["adapter"], received.mean)}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return lambda x: self._logits(state["adapter"], x, state["text"])

    def _logits(self, adapter: Params, f: Tensor, text: Tensor) -> Tensor:
        adapted = F.normalize(self.adapt(adapter, f), dim=-1)
        return text_logits(adapted, text, self.task.logit_scale)
