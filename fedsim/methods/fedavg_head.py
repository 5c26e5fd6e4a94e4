"""FedAvg (McMahan et al., 2017) of a linear head on frozen features, started from the text.

logits = scale * f W^T,   W (N, d) starts as CLIP's class embeddings
round:  every client trains W on its own features;  W <- sum_k (n_k / n) W_k
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.methods.base import State, Task
from fedsim.methods.shared.averaged import AveragedModel
from fedsim.methods.shared.require import require_text
from fedsim.models.cache import text_logits
from fedsim.params import Params


class FedAvgHead(AveragedModel):
    """Federated averaging of the classifier's weights."""

    def setup(self, task: Task, rng: torch.Generator) -> State:
        return {"head": require_text(task).clone()}

    def logits(self, model: Params, x: Tensor) -> Tensor:
        return text_logits(x, model["head"], self.task.logit_scale)

    def class_rows(self, message: Params) -> Params:
        return {"head": torch.arange(len(message["head"]), device=message["head"].device)}
