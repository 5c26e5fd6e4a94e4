"""The quality of a run's synthetic set, and the real image nearest to each generated one.

Computed once per set and data, then read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.config.sections import CacheConfig
from fedsim.data.from_config import DataSource
from fedsim.errors import ConfigError
from fedsim.inputs.run_inputs import RunInputs
from fedsim.inputs.task import as_tensor
from fedsim.methods.base import Labelled
from fedsim.models.clip import Clip, load_clip
from fedsim.models.image_arrays import fit_images
from fedsim.models.set_distances import nearest_samples
from fedsim.models.set_quality import RealFeatures, SyntheticFeatures, set_quality, usefulness
from fedsim.storage.array_cache import Arrays, InputStep, arrays_of

_FORMAT = 1
"""Raised whenever a measure changes; older entries are then not found."""
_PAIRS = 8
"""Synthetic images whose nearest real ones are kept as pixels, for people to look at."""
_SIDE = 128
"""Largest side of these images, in pixels."""


def check_measured(clip: str | None, source: DataSource, method: str) -> None:
    """Refuse to measure images without an encoder, or without images to compare with.

    Raises:
        ConfigError: One of the two is missing.
    """
    where = f"methods.{method}: evaluation.set_quality"
    if clip is None:
        raise ConfigError(
            f"{where} measures images with models.clip: name one, such as tiny-clip or "
            "ViT-B-32/openai"
        )
    if source.dataset.train.features is not None:
        raise ConfigError(
            f"{where} compares images with the data's, but {source.settings.name!r} holds "
            "precomputed features: leave it out"
        )


def quality_rows(cache: CacheConfig, data: RunInputs, text: Tensor | None) -> list[dict[str, Any]]:
    """The rows of `synthetic` about the generated set: one per class, then the whole set's.

    Args:
        cache: Residual ratio and sharpness, with which the set's use is measured.
        data: The run's arrays, with a synthetic set.
        text: `(num_classes, d)` class embeddings; without them images are counted, not judged.
    """
    labels = np.asarray(data.synthetic["labels"])
    found = {} if text is None else _measured(cache, data, text.cpu())
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


def _measured(cache: CacheConfig, data: RunInputs, text: Tensor) -> Arrays:
    """Every measure, by name: of each class, then of the whole set."""
    made, scale = _made(data), data.meta["logit_scale"]
    real = _real(data.arrays, made.features.shape[1])
    digest = hashlib.sha256(text.numpy().tobytes()).hexdigest()
    key = _key("quality", data) | {"text": digest}
    found = InputStep(key, lambda: set_quality(made, text, real)).arrays.copy()
    if real is not None:  # quick, and different for every sharpness
        found |= usefulness(made, text, real, scale, cache.residual_ratio, cache.sharpness)
    return found


class RoundQuality:
    """Measures sets that a server makes in rounds, as wholes, in the space of `models.clip`.

    Encoder and real features, which the method need not use, are loaded with the first set.

    Args:
        clip: `models.clip`.
        real: Steps to features of all images (`RunInputs.measured`).
        device: Where the encoder computes.
    """

    def __init__(self, clip: str | None, real: Sequence[InputStep], device: torch.device) -> None:
        self._spec, self._steps, self._device = clip, real, device

    def __call__(self, made: Labelled) -> dict[str, float]:
        """Columns of `synthetic` for uint8 images `(n, c, h, w)`, without those that are NaN."""
        images = made.inputs.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
        order = made.labels.cpu().argsort(stable=True)
        features = self._clip.encode_images(self._clip.prepare(images)).cpu()[order]
        whole = SyntheticFeatures(features, features, made.labels.cpu()[order])
        text, real = as_tensor(self._real["text_features"]), _real(self._real, features.shape[1])
        found = {k: float(v[-1]) for k, v in set_quality(whole, text, real).items()}
        return {name: value for name, value in sorted(found.items()) if not np.isnan(value)}

    @cached_property
    def _clip(self) -> Clip:
        assert self._spec is not None, "see check_measured"
        return load_clip(self._spec, self._device)

    @cached_property
    def _real(self) -> Arrays:
        return arrays_of(self._steps)


def nearest_real(data: RunInputs) -> Arrays | None:
    """The training image nearest to each generated one, and the pixels of the nearest of all.

    An audit that only the simulator can make, as are the other measures.

    Args:
        data: The run's arrays, with a synthetic set.

    Returns:
        `rows` int64 `(m,)` of the training split; `similarity` float64 `(m,)`, cosines of
        features; and if the data holds images `closest` int64 `(p,)`, the generated images with the
        largest cosines, largest first, and `pixels` uint8 `(p, h, h, 3)`, the middle of the
        training image nearest to each. None where there are no real features to compare with.

    Raises:
        DataError: The data can no longer be read.
    """
    real = _real(data.arrays, data.synthetic["features"].shape[1])
    if real is None or not len(real.train):
        return None

    def make() -> Arrays:
        similarity, rows = (x.numpy() for x in nearest_samples(_made(data).features, real.train))
        closest = np.argsort(-similarity, kind="stable")[:_PAIRS]
        found = {"rows": rows, "similarity": similarity}
        split = data.source.dataset.train
        if split.images is None:
            return found
        images = [_colour(split.load_images(rows[[at]])[0]) for at in closest]
        side = min(_SIDE, *images[0].shape[:2])
        pixels = fit_images(images, (3, side, side)).transpose(0, 2, 3, 1)
        return found | {"closest": closest, "pixels": pixels}

    return InputStep(_key("nearest", data), make).arrays


def _key(kind: str, data: RunInputs) -> dict[str, Any]:
    """Everything that a comparison of the set with the data depends on."""
    compared = {"synthetic": data.synthetic_address, "inputs": data.address}
    return {"kind": kind, "format": _FORMAT} | compared


def _colour(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _made(data: RunInputs) -> SyntheticFeatures:
    names = ("inputs", "features", "labels")
    return SyntheticFeatures(*(as_tensor(data.synthetic[name]) for name in names))


def _real(arrays: Arrays, width: int) -> RealFeatures | None:
    """Real features `(n, width)`, where the arrays hold features; images have none here."""
    if arrays["train_inputs"].ndim != 2 or arrays["train_inputs"].shape[1] != width:
        return None
    names = ("train_inputs", "train_labels", "val_inputs", "val_labels")
    tensors = [as_tensor(np.asarray(arrays[name])) for name in names]
    return RealFeatures(tensors[0], tensors[1].long(), tensors[2], tensors[3].long())
