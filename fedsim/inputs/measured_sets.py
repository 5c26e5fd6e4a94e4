"""The quality of a run's synthetic set, and which real images its own are nearest to.

Computed once per set and data, then read again.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.config import Experiment
from fedsim.data.from_config import read_dataset
from fedsim.inputs.prepare import MEASURED_LIKE, TaskData, prepare
from fedsim.inputs.task import as_tensor
from fedsim.methods.base import Labelled
from fedsim.models.clip import Clip, load_clip
from fedsim.models.image_arrays import fit_images
from fedsim.models.set_distances import nearest_samples
from fedsim.models.set_quality import RealFeatures, SyntheticFeatures, set_quality, usefulness
from fedsim.storage.array_cache import Arrays, shared_arrays

_FORMAT = 1
"""Raised whenever a measure changes; older entries are then not found."""
_PAIRS = 8
"""Synthetic images whose nearest real ones are kept as pixels, to be looked at."""
_SIDE = 128
"""The most pixels of a side of those."""


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
    made = _made(data)
    real = _real(data, made.features.shape[1])
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


class RoundQuality:
    """Measures sets that a server makes in rounds, as wholes, in the space of `models.clip`.

    Encoder and real features, which the method need not use, are loaded with the first set.

    Args:
        config: The resolved experiment.
        device: Where the encoder computes.
    """

    def __init__(self, config: Experiment, device: torch.device) -> None:
        self._config, self._device = config, device

    def __call__(self, made: Labelled) -> dict[str, float]:
        """Columns of `synthetic` for uint8 images `(n, c, h, w)`, as far as they can be had."""
        images = made.inputs.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
        order = made.labels.cpu().argsort(stable=True)
        features = self._clip.encode_images(self._clip.prepare(images)).cpu()[order]
        data = self._data
        whole = SyntheticFeatures(features, features, made.labels.cpu()[order])
        text, real = as_tensor(data.arrays["text_features"]), _real(data, features.shape[1])
        found = {k: float(v[-1]) for k, v in set_quality(whole, text, real).items()}
        return {name: value for name, value in sorted(found.items()) if not np.isnan(value)}

    @cached_property
    def _clip(self) -> Clip:
        assert self._config.models.clip is not None, "see preflight"
        return load_clip(self._config.models.clip, self._device)

    @cached_property
    def _data(self) -> TaskData:
        return prepare(self._config, MEASURED_LIKE, self._device, synthetic=False)


def nearest_real(config: Experiment, data: TaskData) -> Arrays | None:
    """The training image nearest to each generated one, and the pixels of the nearest of all.

    An audit that only the simulator can make, as the measures it belongs to.

    Args:
        config: The resolved experiment.
        data: The run's arrays, with a synthetic set.

    Returns:
        `rows` int64 `(m,)` of the training split; `similarity` float64 `(m,)`, cosines of
        features; and if the data holds images `closest` int64 `(p,)`, the generated images with the
        largest cosines, largest first, and `pixels` uint8 `(p, h, h, 3)`, the middle of the
        training image nearest to each. None where there are no real features to compare with.

    Raises:
        DataError: The data can no longer be read.
    """
    real = _real(data, data.synthetic["features"].shape[1])
    if real is None or not len(real.train):
        return None
    key = {
        "kind": "nearest",
        "format": _FORMAT,
        "synthetic": data.synthetic_address,
        "inputs": data.address,
    }

    def make() -> Arrays:
        similarity, rows = (x.numpy() for x in nearest_samples(_made(data).features, real.train))
        closest = np.argsort(-similarity, kind="stable")[:_PAIRS]
        found = {"rows": rows, "similarity": similarity}
        split = read_dataset(config.data, config.partition_seed).train
        if split.images is None:
            return found
        images = [_colour(split.load_images(rows[[at]])[0]) for at in closest]
        side = min(_SIDE, *images[0].shape[:2])
        pixels = fit_images(images, (3, side, side)).transpose(0, 2, 3, 1)
        return found | {"closest": closest, "pixels": pixels}

    return shared_arrays(key, make)


def _colour(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _made(data: TaskData) -> SyntheticFeatures:
    names = ("inputs", "features", "labels")
    return SyntheticFeatures(*(as_tensor(data.synthetic[name]) for name in names))


def _real(data: TaskData, width: int) -> RealFeatures | None:
    """Real features `(n, width)`, where the arrays hold features; images have none here."""
    arrays = data.arrays
    if arrays["train_inputs"].ndim != 2 or arrays["train_inputs"].shape[1] != width:
        return None
    names = ("train_inputs", "train_labels", "val_inputs", "val_labels")
    tensors = [as_tensor(np.asarray(arrays[name])) for name in names]
    return RealFeatures(tensors[0], tensors[1].long(), tensors[2], tensors[3].long())
