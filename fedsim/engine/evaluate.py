"""Metrics of predictions on held-out data.

They run every round, so they are a few lines of NumPy. Tests compare them with scikit-learn and
torchmetrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.methods.base import Predictor

NUM_ECE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Metrics of one model on one split.

    Attributes:
        metrics: `accuracy, balanced_accuracy, worst_class` in [0, 1], `nll` in nats, `ece` in
            [0, 1] (15 equal bins, Guo et al. 2017).
        per_class: Recall of every class that occurs, by class index.
        predictions: `(N,)` int64; None for the mean scores of several models.
    """

    metrics: dict[str, float]
    per_class: dict[int, float]
    predictions: np.ndarray | None


@torch.no_grad()
def predict(predictor: Predictor, inputs: Tensor, batch_size: int) -> np.ndarray:
    """Logits `(N, num_classes)` in float64, batch by batch."""
    chunks = [predictor(chunk).double().cpu() for chunk in inputs.split(batch_size)]
    return torch.cat(chunks).numpy()


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Metrics of logits `(N, num_classes)` against labels `(N,)`.

    >>> scores = score(np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), np.array([0, 1, 1]))
    >>> round(scores.metrics["accuracy"], 3), scores.metrics["worst_class"]
    (0.667, 0.5)
    """
    shifted = logits - logits.max(1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    predicted = logits.argmax(1)
    correct = predicted == labels
    per_class = {int(c): float(correct[labels == c].mean()) for c in np.unique(labels)}
    recalls = np.array(list(per_class.values()))
    return Scores(
        metrics={
            "accuracy": float(correct.mean()),
            "balanced_accuracy": float(recalls.mean()),
            "worst_class": float(recalls.min()),
            "nll": float(-log_probability[np.arange(len(labels)), labels].mean()),
            "ece": _calibration_error(np.exp(log_probability.max(1)), correct),
        },
        per_class=per_class,
        predictions=predicted.astype(np.int64),
    )


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean over models, metric by metric."""
    if len(scores) == 1:
        return scores[0]
    return Scores(
        metrics={
            name: float(np.mean([s.metrics[name] for s in scores])) for name in scores[0].metrics
        },
        per_class={
            c: float(np.mean([s.per_class[c] for s in scores])) for c in scores[0].per_class
        },
        predictions=None,
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and mean of the worst tenth (at least one) of clients.

    >>> spread([0.5, 1.0])
    {'client_mean': 0.75, 'client_std': 0.25, 'client_worst10': 0.5}
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    worst = ordered[: max(1, math.ceil(len(ordered) / 10))]
    return {
        "client_mean": float(ordered.mean()),
        "client_std": float(ordered.std()),
        "client_worst10": float(worst.mean()),
    }


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected gap between confidence and accuracy over equal bins of confidence."""
    edges = np.linspace(0, 1, NUM_ECE_BINS + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    count = np.bincount(bins, minlength=NUM_ECE_BINS)
    gap = np.bincount(bins, confidence - correct, minlength=NUM_ECE_BINS)
    return float(np.abs(gap).sum() / max(1, count.sum()))
