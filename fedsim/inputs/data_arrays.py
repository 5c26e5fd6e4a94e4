"""The first step: the data as arrays. Labels, inputs of every split, and class embeddings.

Inputs are features of the frozen encoder, pixels at its input size, or images at their own size.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np

from fedsim.data.containers import Dataset
from fedsim.data.from_config import draw_seed, source_identity
from fedsim.errors import ConfigError
from fedsim.inputs.encode import Encoder
from fedsim.inputs.raw_images import own_pictures
from fedsim.storage.array_cache import Arrays, InputStep

InputKind = Literal["features", "pixels", "images"]
"""What a method works on: `Method.inputs`."""

_FEATURE_LOGIT_SCALE = 100.0
_FORMAT = 6
"""Raised whenever the stored arrays change; older entries are then not found."""


def data_step(inputs: InputKind, encoder: Encoder) -> InputStep:
    """Labels, inputs, class embeddings and facts of a data set (see `RunInputs`).

    Args:
        inputs: What is made of the images.
        encoder: The frozen encoder, and the data set.

    Returns:
        A step that raises `ConfigError` if the method needs images and the data holds features, or
        if it needs an encoder and has none; `DataError` if the data cannot be read; `ModelError`
        if the encoder cannot be loaded.
    """
    source = encoder.source
    key = {
        "kind": "inputs",
        "format": _FORMAT,
        "inputs": inputs,
        "data": source.settings.model_dump(mode="json"),
        "source": source.identity,
        "seed": draw_seed(source.settings, source.seed),
        "clip": source_identity(encoder.spec),
    }

    def make() -> Arrays:
        dataset, name = source.dataset, source.settings.name
        splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
        arrays, meta, text = _columns(dataset), _facts(dataset), dataset.text_features
        if dataset.train.features is not None:
            if inputs != "features":
                raise ConfigError(
                    f"method {encoder.method!r} trains on images, but {name!r} holds precomputed "
                    f"features: use a method that works on features, or images"
                )
            found = {split: _unit(rows.features) for split, rows in splits.items()}
            meta["embed_dim"] = found["train"].shape[-1]
        else:
            own_size = inputs == "images"
            clip = None if own_size and encoder.spec is None else encoder.load()
            if clip is None or own_size:
                found = own_pictures(splits, encoder.progress)
            else:
                images = {n: s.images for n, s in splits.items() if s.images is not None}
                found = encoder.encode(clip, inputs == "pixels", images, key)
            if clip is not None:
                for fact in ("logit_scale", "visual_bytes", "text_bytes", "embed_dim"):
                    meta[fact] = getattr(clip, fact)
                if text is None:
                    names, templates = dataset.classnames, dataset.templates
                    text = clip.class_embeddings(names, templates).cpu().numpy()
        arrays |= {f"{split}_inputs": rows for split, rows in found.items()}
        if text is not None:
            arrays["text_features"] = _unit(text)
        return arrays | {"meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)}

    return InputStep(key, make)


def meta_of(data: InputStep) -> dict[str, Any]:
    """Facts about the data beside its arrays (see `RunInputs.meta`)."""
    return json.loads(data.arrays["meta"].tobytes())


def _columns(dataset: Dataset) -> Arrays:
    """Arrays with one number per sample."""
    columns = {
        "train_labels": dataset.train.labels,
        "val_labels": dataset.val.labels,
        "test_labels": dataset.test.labels,
        "train_clients": dataset.train.clients,
        "train_domains": dataset.train.domains,
        "test_domains": dataset.test.domains,
    }
    return {name: column for name, column in columns.items() if column is not None}


def _facts(dataset: Dataset) -> dict[str, Any]:
    text = dataset.text_features
    return {
        "classnames": list(dataset.classnames),
        "templates": list(dataset.templates),
        "domain_names": list(dataset.domain_names),
        "notes": list(dataset.notes),
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "logit_scale": _FEATURE_LOGIT_SCALE,
        "visual_bytes": 0,
        "text": None if text is None else hashlib.sha256(text.tobytes()).hexdigest(),
        "text_bytes": 0,
        "embed_dim": 0,
    }


def _unit(features: np.ndarray | None) -> np.ndarray:
    assert features is not None
    norm = np.linalg.norm(features.astype(np.float64), axis=-1, keepdims=True)
    return (features / np.maximum(norm, 1e-12)).astype(np.float32)
