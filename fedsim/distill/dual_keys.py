"""Matching moves of cache keys in dual form: the student's keys are never written down.

    W (M, d)    keys that clients received      D (M, d)    a client's move of them
    x (n, d)    synthetic features, labels y    V (M, N)    values      P = x W^T,  Q = x D^T

A student that takes gradient steps on x stays at W + C^T x: its cosines are P + x x^T C, and

    C  <-  C - lr * slope            slope = alpha beta a(cosines) (p - Y) V^T / n        (n, M)
    |C^T x - D|^2 / |D|^2  =  (<C, x x^T C> - 2 <C, Q> + |D|^2) / |D|^2

`NetworkStudent` computes the same on keys. Here tensors have n M numbers instead of M d. Because
the slope is written out, one pass backwards gives the exact gradient. `constant` keeps the keys
fixed from which a step starts, as in `NetworkStudent`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.distill.student import Lesson, Match
from fedsim.models.cache import affinity_of_cosine, cache_logits, text_logits
from fedsim.params import Params

KEYS = "keys"


@dataclass(frozen=True)
class CacheModel:
    """The cache model as a function of its keys; sent to other processes as it is."""

    text: Tensor
    values: Tensor
    residual_ratio: float
    sharpness: float
    logit_scale: float

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """Features `(B, d)` -> logits `(B, num_classes)`."""
        cached = cache_logits(x, params[KEYS], self.values, self.sharpness)
        return text_logits(x, self.text, self.logit_scale) + self.residual_ratio * cached


@dataclass(frozen=True)
class KeyStudent:
    """A `Student` of cache keys. The images of a lesson are features `(C, n, d)`.

    Attributes:
        model: The cache.
        gradient: See `fedsim.distill.trajectory`.
    """

    model: CacheModel
    gradient: Literal["constant", "unroll"]

    def match(self, lesson: Lesson) -> Match:
        x, lr = (v.detach().requires_grad_() for v in (lesson.images, lesson.lr))
        loss, _ = self._ends(replace(lesson, images=x, lr=lr))
        by_images, by_lr = torch.autograd.grad(loss.sum(), (x, lr))
        return Match(loss.detach(), by_images, by_lr)

    @torch.no_grad()
    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        return self._ends(lesson)

    def _ends(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Where the students end: their distances and the lengths of their moves, `(C,)` each."""
        model, keys, x = self.model, lesson.start[KEYS], lesson.images
        wanted = lesson.end[KEYS] - keys
        length = wanted.square().sum((1, 2)).clamp_min(1e-12)
        known, first, gram = text_logits(x, model.text, model.logit_scale), x @ keys.mT, x @ x.mT
        one_hot = F.one_hot(lesson.labels, len(model.text)).to(x.dtype)
        coefficients = torch.zeros_like(first)
        for step in lesson.steps:
            share = torch.zeros_like(x[..., 0]).scatter_add(1, step.rows, step.mask.to(x.dtype))
            share = share / step.mask.sum(1, keepdim=True).clamp_min(1)
            if self.gradient == "unroll":
                cosine = first + gram @ coefficients
            else:
                cosine = first + (x @ x.detach().mT) @ coefficients.detach()
            near = affinity_of_cosine(cosine, model.sharpness)
            logits = known + model.residual_ratio * near @ model.values
            wrong = (logits.softmax(-1) - one_hot) * share[..., None]
            slope = model.residual_ratio * model.sharpness * near * (wrong @ model.values.mT)
            coefficients = coefficients - lesson.lr[:, None, None] * slope
        moved = (coefficients * (gram @ coefficients)).sum((1, 2))
        along = (coefficients * (x @ wanted.mT)).sum((1, 2))
        return (moved - 2 * along + length) / length, (moved / length).clamp_min(0).sqrt()
