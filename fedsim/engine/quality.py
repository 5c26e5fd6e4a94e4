"""The quality of a run's synthetic set: computed once per set and data, then read again."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.config import Experiment
from fedsim.data.store import Arrays, shared_arrays
from fedsim.engine.prepare import TaskData
from fedsim.engine.task import as_tensor
from fedsim.models.quality import RealFeatures, SyntheticFeatures, set_quality, usefulness

_FORMAT = 1
"""Raised whenever a measure changes; older entries are then not found."""


def quality_rows(config: Experiment, data: TaskData, text: Tensor | None) -> list[dict[str, Any]]:
    """The rows of `synthetic` about the generated set: one per class, then the whole set's.

    Args:
        config: The resolved experiment; of its cache, ratio and sharpness matter.
        data: The run's arrays, with a synthetic set.
        text: `(num_classes, d)` class embeddings; without them images are counted, not judged.
    """
    labels = np.asarray(data.synthetic["labels"])
    found = {} if text is None else _measured(config, data, text.cpu())
    drawn = np.asarray(data.synthetic["drawn_agreement"])
    found["drawn_agreement"] = np.append(drawn, drawn.mean())
    draw_s = float(data.synthetic["draw_s"][0])
    found["generate_s"] = np.append(np.full(len(drawn), draw_s / len(drawn)), draw_s)
    rows = []
    for label, name in [*enumerate(data.meta["classnames"]), (-1, None)]:
        whole = name is None
        count = len(labels) if whole else int((labels == label).sum())
        row = {
            "round": 0,
            "class_name": name,
            "label": None if whole else label,
            "num_images": count,
        }
        values = {measure: float(array[label]) for measure, array in sorted(found.items())}
        rows.append(row | {m: value for m, value in values.items() if not np.isnan(value)})
    return rows


def _measured(config: Experiment, data: TaskData, text: Tensor) -> Arrays:
    """Every measure, by name: of each class, then of the whole set."""
    cache, scale = config.cache, data.meta["logit_scale"]
    made, real = _made(data), _real(data)
    key = {
        "kind": "quality",
        "format": _FORMAT,
        "synthetic": data.synthetic_address,
        "inputs": data.address,
        "text": hashlib.sha256(text.numpy().tobytes()).hexdigest(),
    }
    found = shared_arrays(key, lambda: set_quality(made, text, real))
    if real is not None:  # quick, and another one for every sharpness that is tried
        found |= usefulness(made, text, real, scale, cache.residual_ratio, cache.sharpness)
    return found


def _made(data: TaskData) -> SyntheticFeatures:
    names = ("inputs", "features", "labels")
    return SyntheticFeatures(*(as_tensor(data.synthetic[name]) for name in names))


def _real(data: TaskData) -> RealFeatures | None:
    """Real features, where clients train on features of the same encoder; images have none here."""
    arrays, width = data.arrays, data.synthetic["features"].shape[1]
    if arrays["train_inputs"].ndim != 2 or arrays["train_inputs"].shape[1] != width:
        return None
    names = ("train_inputs", "train_labels", "val_inputs", "val_labels")
    tensors = [as_tensor(np.asarray(arrays[name])) for name in names]
    return RealFeatures(tensors[0], tensors[1].long(), tensors[2], tensors[3].long())
