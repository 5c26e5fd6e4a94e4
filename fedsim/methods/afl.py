"""AFL (He et al., arXiv 2405.16240): a linear head in closed form, in one round.

    X (n, d)  features     Y (n, N)  one-hot labels     P = softmax(scale * X T^T)     T  text

    client k sends  X_k^T X_k  and  X_k^T Y_k;   the server sums them and solves
    W = (X^T X + ridge * I)^(-1) X^T Y                           the pooled solution, for any split

The paper's clients send their own ridge solutions. Its absolute aggregation law combines these to
W, one client after the other, and a correction then removes their regularisation. The law
reconstructs the sums. Clients here send the sums themselves, which add up in any order and need
neither law nor correction.

AFL has no text classifier, while the methods beside it have one. `options.text` joins the two:

    beside     logits = scale * f T^T + alpha * f W         as in Tip-Adapter and GDA
    residual   the same, but W regresses Y - P, which the text does not explain
    none       logits = alpha * f W                         the paper's classifier
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.methods.base import Batches, Predictor, State, Task
from fedsim.methods.shared.one_round import OneRoundOfSums
from fedsim.methods.shared.require import require_text
from fedsim.methods.shared.statistics import class_targets, normal_equations, regressed
from fedsim.models.cache import text_logits
from fedsim.params import Params


class AFLOptions(BaseModel, extra="forbid", allow_inf_nan=False):
    """The target of the regression, its damping and its weight."""

    text: Literal["beside", "residual", "none"] = "beside"
    ridge: float = Field(0.01, gt=0)
    """In units of the mean eigenvalue of X^T X."""
    alpha: float = Field(10.0, gt=0)


class AFL(OneRoundOfSums):
    """One exact round of ridge regression on frozen features."""

    Options = AFLOptions
    options: AFLOptions

    def setup(self, task: Task, rng: torch.Generator) -> State:
        head = torch.zeros(task.num_classes, task.embed_dim, device=task.device)
        if self.options.text == "none":
            return {"head": head}
        return {"head": head, "text": require_text(task)}

    def constants(self, state: State) -> Params:
        return {"text": state["text"]} if self.options.text == "residual" else {}

    def sums(self, message: Params, batches: Batches) -> Params:
        return normal_equations(batches, lambda x: x, class_targets(self.task, message.get("text")))

    def solve(self, state: State, sums: Params) -> State:
        weights = regressed(sums, self.options.ridge)
        return state | {"head": weights.mT.float().contiguous()}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        def logits(x: Tensor) -> Tensor:
            learnt = self.options.alpha * (x @ state["head"].T)
            if "text" not in state:
                return learnt
            return text_logits(x, state["text"], self.task.logit_scale) + learnt

        return logits
