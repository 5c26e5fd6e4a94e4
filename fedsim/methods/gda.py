"""Gaussian discriminant analysis beside the text (Wang et al., ICLR 2024), in one exact round.

    n_c, mu_c    samples and mean feature of class c        n, d    samples, dimension
    S          = sum_i (f_i - mu_y(i)) (f_i - mu_y(i))^T    scatter within the classes
    precision  = d (S + tr(S) / (n - 1) * I)^(-1)           shrunk as in the paper
    w_c        = precision mu_c
    b_c        = -1/2 mu_c^T precision mu_c                 equal class priors, as in the paper
    logits     = scale * f T^T + alpha * (f w^T + b)

The paper's classifier needs no gradient. The federated one needs three sums over clients: n_c,
sum_{i: y(i) = c} f_i and sum_i f_i f_i^T. They are the pooled sums under any split. The scatter is
the last one minus sum_c n_c mu_c mu_c^T. A class without a sample gets the mean of all features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.methods.base import Batches, Predictor, State, Task
from fedsim.methods.shared.one_round import OneRoundOfSums
from fedsim.methods.shared.require import require_text
from fedsim.methods.shared.statistics import (
    class_targets,
    discriminant,
    normal_equations,
    square,
)
from fedsim.models.cache import text_logits
from fedsim.params import Params


class GDAOptions(BaseModel, extra="forbid", allow_inf_nan=False):
    """Weight of the features' classifier against the text's, and shrinkage of its covariance."""

    alpha: float = Field(1.0, ge=0)
    shrinkage: float = Field(1.0, gt=0)
    """Factor of tr(S) / (n - 1); 1 is the paper's."""


class GDA(OneRoundOfSums):
    """One exact round of class means and a shared covariance."""

    Options = GDAOptions
    options: GDAOptions

    def setup(self, task: Task, rng: torch.Generator) -> State:
        text = require_text(task)
        return {"text": text, "weight": torch.zeros_like(text), "bias": text.new_zeros(len(text))}

    def sums(self, message: Params, batches: Batches) -> Params:
        sums = normal_equations(batches, lambda f: f, class_targets(self.task))
        return sums | {"counts": batches.label_counts(self.task.num_classes).double()}

    def solve(self, state: State, sums: Params) -> State:
        first, counts, d = sums["cross"].mT, sums["counts"][:, None], self.task.embed_dim
        n = counts.sum()
        means = torch.where(counts > 0, first / counts.clamp_min(1), first.sum(0) / n)
        scatter = square(sums["second"], d) - (means * counts).mT @ means
        share = scatter.trace() / (n - 1).clamp_min(1)
        if share <= 1e-9:  # every class is one point: its spread is unknown
            return state
        scatter.diagonal().add_(self.options.shrinkage * share)
        weight, bias = discriminant(means, scatter / d)
        return state | {"weight": weight.float(), "bias": bias.float()}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        def logits(f: Tensor) -> Tensor:
            discriminants = f @ state["weight"].T + state["bias"]
            known = text_logits(f, state["text"], self.task.logit_scale)
            return known + self.options.alpha * discriminants

        return logits
