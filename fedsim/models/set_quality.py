"""Measures of a synthetic set in the frozen encoder's space, class by class and as a whole.

Three questions, each with its own kind of evidence:

- does it show what was asked for? Only text is needed: `clip_*`, `drawn_agreement`, `diversity`;
- does it look like the clients' data? This needs their pooled training features. Only the simulator
  has them; they serve the study's author and never a method;
- is it of use? Accuracy on validation data of an untrained cache made of it.

Definitions: `fedsim.models.set_distances` and `fedsim.results.tables.schema`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.models.cache import cache_logits, text_logits
from fedsim.models.set_distances import (
    closeness,
    frechet_distance,
    kernel_distance,
    manifold_measures,
    nearest_samples,
)
from fedsim.seeding import numpy_rng

_MOST_NEIGHBOURS = 2000
"""Most samples of a set in a search for neighbours; of a larger set, a fixed random choice."""
_CHUNK = 2048


@dataclass(frozen=True)
class SyntheticFeatures:
    """A synthetic set, sorted by class.

    Attributes:
        keys: `(m, d)` keys of a cache made of the set.
        features: `(m, d)` of the unchanged images, of length 1.
        labels: `(m,)` int64.
    """

    keys: Tensor
    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class RealFeatures:
    """Real data: training features, which only the simulator knows, and a validation split.

    Attributes:
        train: `(n, d)` training features of all clients, of length 1.
        train_labels: `(n,)` int64.
        val: `(v, d)` real features outside the training set; v may be 0.
        val_labels: `(v,)` int64.
    """

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor


MEASURES = (
    "clip_agreement",
    "clip_similarity",
    "diversity",
    "real_similarity",
    "nearest_similarity",
    "memorisation",
    "fid",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
)
USE = ("cache_accuracy", "gain_per_image")


def set_quality(
    made: SyntheticFeatures, text: Tensor, real: RealFeatures | None
) -> dict[str, np.ndarray]:
    """The measures of `MEASURES`, which depend on the set and on the data alone.

    Args:
        made: The set.
        text: `(num_classes, d)` class embeddings.
        real: Real data to compare with; without it only the measures against text are made.

    Returns:
        Name -> float64 `(num_classes + 1,)`: a value per class, the last one for the whole set;
        NaN where there is too little to measure.
    """
    num_classes = len(text)
    found = {name: np.full(num_classes + 1, np.nan) for name in MEASURES}
    _against_text(found, made, text)
    if real is not None:
        _against_real(found, made, real)
    return found


def usefulness(
    made: SyntheticFeatures,
    text: Tensor,
    real: RealFeatures,
    logit_scale: float,
    residual_ratio: float,
    sharpness: float,
) -> dict[str, np.ndarray]:
    """The measures of `USE`: an untrained cache of the set, as in Tip-Adapter, on validation data.

    Args:
        made: The set.
        text: `(num_classes, d)` class embeddings.
        real: Its validation split is what is classified.
        logit_scale: Factor of the text logits.
        residual_ratio: Weight of the cache logits.
        sharpness: How fast affinity falls with distance.

    Returns:
        As `set_quality`.
    """
    num_classes = len(text)
    found = {name: np.full(num_classes + 1, np.nan) for name in USE}
    if not len(real.val):
        return found
    values = functional.one_hot(made.labels, num_classes).to(made.keys.dtype)
    before, after = [], []
    for part in real.val.split(_CHUNK):
        known = text_logits(part, text, logit_scale)
        before.append(known.argmax(1))
        cached = cache_logits(part, made.keys, values, sharpness)
        after.append((known + residual_ratio * cached).argmax(1))
    was_right, is_right = (
        (torch.cat(parts) == real.val_labels).double() for parts in (before, after)
    )
    for label in (*range(num_classes), -1):
        rows, count = _rows(real.val_labels, label), int(_rows(made.labels, label).sum())
        accuracy = _mean(is_right[rows])
        found["cache_accuracy"][label] = accuracy
        if count:
            found["gain_per_image"][label] = (accuracy - _mean(was_right[rows])) / count
    return found


def _against_text(found: dict[str, np.ndarray], made: SyntheticFeatures, text: Tensor) -> None:
    similarity = made.features.double() @ text.double().T
    own = similarity.gather(1, made.labels[:, None])[:, 0]
    agrees = (similarity.argmax(1) == made.labels).double()
    for label in (*range(len(text)), -1):
        rows = _rows(made.labels, label)
        found["clip_agreement"][label] = _mean(agrees[rows])
        found["clip_similarity"][label] = _mean(own[rows])
    for label in range(len(text)):
        features = made.features[made.labels == label].double()
        pairs = len(features) * (len(features) - 1)
        if pairs:
            cosines = features @ features.T
            found["diversity"][label] = 1 - float(cosines.sum() - cosines.trace()) / pairs
    if not np.isnan(found["diversity"]).all():
        found["diversity"][-1] = np.nanmean(found["diversity"])


def _against_real(
    found: dict[str, np.ndarray], made: SyntheticFeatures, real: RealFeatures
) -> None:
    num_classes = len(found["fid"]) - 1
    nearest = _nearest(made.features, real.train)
    fresh = _nearest(real.val, real.train)
    for label in (*range(num_classes), -1):
        rows, held_out = _rows(made.labels, label), _rows(real.val_labels, label)
        synthetic, train = made.features[rows], real.train[_rows(real.train_labels, label)]
        found["nearest_similarity"][label] = _mean(nearest[rows])
        found["memorisation"][label] = closeness(nearest[rows].numpy(), fresh[held_out].numpy())
        if len(synthetic) and len(train):
            ours, theirs = (
                functional.normalize(x.double().mean(0), dim=0) for x in (synthetic, train)
            )
            found["real_similarity"][label] = float(ours @ theirs)
        found["fid"][label] = frechet_distance(train, synthetic)
        rng = numpy_rng(0, "quality", label)  # the same choice of samples in every run
        found["kid"][label] = kernel_distance(train, synthetic, rng, gamma=1.0)
        train, synthetic = (_at_most(x, _MOST_NEIGHBOURS, rng) for x in (train, synthetic))
        for name, value in manifold_measures(train, synthetic)._asdict().items():
            found[name][label] = value


def _rows(labels: Tensor, label: int) -> Tensor:
    """The mask of a class's rows; of all rows for -1."""
    return labels == label if label >= 0 else torch.ones_like(labels, dtype=torch.bool)


def _nearest(samples: Tensor, others: Tensor) -> Tensor:
    if not len(samples) or not len(others):
        return torch.full((len(samples),), math.nan, dtype=torch.float64)
    return nearest_samples(samples, others)[0]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


def _at_most(x: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    if len(x) <= count:
        return x
    return x[torch.from_numpy(np.sort(rng.choice(len(x), count, replace=False)))]
