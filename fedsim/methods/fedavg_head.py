"""FedAvg (McMahan et al., 2017) of a linear head on frozen features, started from the text.

logits = scale * f W^T,   W (N, d) starts as CLIP's class embeddings
round:  every client trains W on its own features;  W <- sum_k (n_k / n) W_k
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedsim.methods.base import Batches, Method, Predictor, Received, State, Task, Update
from fedsim.methods.shared.require import require_text
from fedsim.methods.training import train_locally
from fedsim.models.cache import text_logits
from fedsim.params import Params, add


class FedAvgHead(Method):
    """Federated averaging of the classifier's weights."""

    def setup(self, task: Task, rng: torch.Generator) -> State:
        return {"head": require_text(task).clone()}

    def message(self, state: State) -> Params:
        return {"head": state["head"]}

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        delta = train_locally(message, partial(self.client_logits, message), batches)
        return Update(delta, weight=batches.num_samples), client_state

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        return text_logits(x, params["head"], self.task.logit_scale)

    def class_rows(self, message: Params) -> Params:
        return {"head": torch.arange(len(message["head"]), device=message["head"].device)}

    def aggregate(self, state: State, received: Received) -> State:
        return add(state, received.mean)

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return lambda x: text_logits(x, state["head"], self.task.logit_scale)
