"""CLIP-Adapter (Gao et al., arXiv 2110.04544) on image features, trained by federated averaging.

    A(f)   = ReLU(W2 ReLU(W1 f))                    W1 (d/4, d), W2 (d, d/4), no biases
    logits = scale * norm(alpha A(f) + (1 - alpha) f) text^T
    round:   every client trains W1 and W2 on its own features
             W <- sum_k (n_k / n) W_k               for both

alpha is `residual_ratio`, d / 4 is `d / reduction`. A(c f) = c A(f) for c > 0, so features of
length 1 give the logits that CLIP's own, longer ones would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.methods.base import Batches, Method, Predictor, Received, State, Task, Update
from fedsim.methods.cachefl import require_text
from fedsim.methods.training import train_locally
from fedsim.models.adapters import affine, draw_linear
from fedsim.models.cache import text_logits
from fedsim.params import Params, add, to_device


class CLIPAdapterOptions(BaseModel, extra="forbid"):
    """Shape and weight of the adapter; the defaults are the paper's."""

    reduction: int = Field(4, gt=0)
    residual_ratio: float = Field(0.2, ge=0, le=1)


class CLIPAdapter(Method):
    """Federated averaging of a bottleneck on the features of the frozen encoder."""

    Options = CLIPAdapterOptions

    def setup(self, task: Task, rng: torch.Generator) -> State:
        assert isinstance(self.options, CLIPAdapterOptions)
        d = task.embed_dim
        narrow = max(1, d // self.options.reduction)
        down = draw_linear("down", d, narrow, rng, bias=False)
        up = draw_linear("up", narrow, d, rng, bias=False)
        return {"adapter": to_device(down | up, task.device), "text": require_text(task)}

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
        assert isinstance(self.options, CLIPAdapterOptions)
        alpha = self.options.residual_ratio
        adapted = affine(affine(f, adapter["down.weight"]).relu(), adapter["up.weight"]).relu()
        mixed = F.normalize(alpha * adapted + (1 - alpha) * f, dim=-1)
        return text_logits(mixed, text, self.task.logit_scale)
