"""FedCLIP (Lu et al., arXiv 2302.13485): an attention adapter on CLIP's image features.

    a(f)   = softmax(W2 tanh(W1 f + b1) + b2)       over the d features; W1, W2 (d, d)
    logits = scale * norm(a(f) * f) text^T          * elementwise
    round:   every client trains W1, b1, W2, b2 on its own features
             W <- sum_k (n_k / n) W_k               and likewise for the others

The softmax makes a(f) as small as 1/d, which the length of 1 afterwards takes away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.methods.base import Batches, Method, Predictor, Received, State, Task, Update
from fedsim.methods.cachefl import require_text
from fedsim.methods.training import train_locally
from fedsim.models.adapters import affine, draw_linear
from fedsim.models.cache import text_logits
from fedsim.params import Params, add, to_device


class FedCLIP(Method):
    """Federated averaging of an attention over the features of the frozen encoder."""

    def setup(self, task: Task, rng: torch.Generator) -> State:
        d = task.embed_dim
        adapter = draw_linear("first", d, d, rng) | draw_linear("second", d, d, rng)
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
        hidden = affine(f, adapter["first.weight"], adapter["first.bias"]).tanh()
        attention = affine(hidden, adapter["second.weight"], adapter["second.bias"]).softmax(-1)
        return text_logits(F.normalize(attention * f, dim=-1), text, self.task.logit_scale)
