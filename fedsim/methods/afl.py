"""AFL (He et al., arXiv 2405.16240): a linear head in closed form, in one round.

    X (n, d)  features     Y (n, N)  one-hot labels     P = softmax(scale * X T^T)     T  text

    client k sends  X_k^T X_k  and  X_k^T Y_k;   the server sums them and solves
    W = (X^T X + ridge * I)^(-1) X^T Y                           the pooled solution, for any split

AFL's clients send their own ridge solutions, which its absolute aggregation law combines to this
W, one client after the other, and a correction then takes their regularisation out again. The sums
are what the law reconstructs: sent as they are, they add up in any order and need neither.

AFL knows no text. The methods it stands beside here do, so `options.text` says what becomes of it:

    beside     logits = scale * f T^T + alpha * f W         as Tip-Adapter and GDA add theirs
    residual   the same, but W regresses Y - P, what the text leaves to explain
    none       logits = alpha * f W                         the paper's classifier
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.methods.base import Batches, Method, Predictor, Received, State, Task, Update
from fedsim.methods.cachefl import require_text
from fedsim.methods.shared.statistics import (
    normal_equations,
    one_hot,
    plain_sums,
    ridge,
    square,
    totals,
)
from fedsim.models.cache import text_logits
from fedsim.params import Params


class AFLOptions(BaseModel, extra="forbid", allow_inf_nan=False):
    """What is regressed, how strongly it is held, and how much it weighs."""

    text: Literal["beside", "residual", "none"] = "beside"
    ridge: float = Field(0.01, gt=0)
    """In units of the mean eigenvalue of X^T X."""
    alpha: float = Field(10.0, gt=0)


class AFL(Method):
    """One exact round of ridge regression on frozen features."""

    averages = False
    Options = AFLOptions
    options: AFLOptions

    @classmethod
    def num_rounds(cls, config: MethodConfig) -> int:
        return min(1, config.train.rounds)

    def setup(self, task: Task, rng: torch.Generator) -> State:
        head = torch.zeros(task.num_classes, task.embed_dim, device=task.device)
        if self.options.text == "none":
            return {"head": head}
        return {"head": head, "text": require_text(task)}

    def constants(self, state: State) -> Params:
        return {"text": state["text"]} if self.options.text == "residual" else {}

    def message(self, state: State) -> Params:
        return {}  # clients need nothing to begin with

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        def targets(x: Tensor, y: Tensor) -> Tensor:
            labels = one_hot(y, self.task.num_classes)
            if "text" not in message:
                return labels
            known = text_logits(x, message["text"].double(), self.task.logit_scale)
            return labels - known.softmax(-1)

        sums = normal_equations(batches, lambda x: x, targets)
        return plain_sums(sums, batches), client_state

    def aggregate(self, state: State, received: Received) -> State:
        if not received.mean:  # every client failed
            return state
        sums = totals(received)
        second = square(sums["second"], self.task.embed_dim)
        weights = ridge(second, sums["cross"], self.options.ridge)
        return state | {"head": weights.mT.float().contiguous()}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        def logits(x: Tensor) -> Tensor:
            learnt = self.options.alpha * (x @ state["head"].T)
            if "text" not in state:
                return learnt
            return text_logits(x, state["text"], self.task.logit_scale) + learnt

        return logits
