"""From configuration to arrays: everything that is computed once, before any client trains.

`prepare` reads the data, runs the frozen encoder over every image once (`fedsim.inputs.encode`),
and over views of the training images where they are asked for (`fedsim.inputs.augmented_views`).
For methods that ask for it, it has the server's class-balanced images made
(`fedsim.inputs.synthetic_set`). All of it lands in the node's shared store.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.config import Experiment
from fedsim.data.from_config import data_identity, draw_seed, read_dataset, source_identity
from fedsim.errors import ConfigError
from fedsim.inputs.augmented_views import VIEWS, check_views, encoded_views, views_key, wants_views
from fedsim.inputs.draw_images import Draw
from fedsim.inputs.encode import Extract, Progress, encode_splits, extract_here
from fedsim.inputs.noisy_clients import OBSERVED, spoilt_arrays, spoilt_key
from fedsim.inputs.raw_images import fitted_pictures, own_pictures
from fedsim.inputs.synthetic_set import synthetic_set
from fedsim.methods.base import Method
from fedsim.methods.fedavg_head import FedAvgHead
from fedsim.models.clip import Clip
from fedsim.seeding import numpy_rng
from fedsim.storage.array_cache import Arrays, Parts, address, shared_arrays

SPLITS = ("train", "val", "test")
MEASURED_LIKE = FedAvgHead
"""A method that works on features of all images: those that synthetic sets are compared with."""

_FEATURE_LOGIT_SCALE = 100.0
_FORMAT = 6
"""Raised whenever what `_inputs` stores changes; older entries are then not found."""
_PUBLIC_SHOTS_LIMIT = 4
"""CoOp's validation protocol (Zhou et al., 2022): at most 4 labelled images per class."""


@dataclass(frozen=True)
class TaskData:
    """Plain arrays of one run, shared by all processes of a node.

    Attributes:
        arrays: `<split>_inputs`, `<split>_labels` for train, val and test; `train_clients`,
            `train_domains` and `test_domains` where the data has them; `text_features`
            `(num_classes, d)`. Under `noise`, `train_inputs` of spoilt clients are so, and
            `train_labels_observed` are what clients train on; `train_labels` are always the true
            ones. Under `train.augment_views`, `train_views` (`fedsim.inputs.augmented_views`).
        meta: `classnames`, `domain_names`, `embed_dim`, `logit_scale`, `visual_bytes` and
            `text_bytes` (of the two encoders; 0 without one), `fingerprint`, `dataset`.
        synthetic: What `fedsim.inputs.synthetic_set.synthetic_set` returns, or empty; for methods
            on `images` also `fitted`, the images as clients' are.
        synthetic_address: Name of the generated set, or None.
        address: Says what `arrays` hold, views apart: the name of the entry they end with.
    """

    arrays: Arrays
    meta: dict[str, Any]
    synthetic: Arrays
    synthetic_address: str | None = None
    address: str = ""

    def local(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels that clients train on: V consecutive rows for each training sample."""
        labels = self.observed_labels
        if VIEWS not in self.arrays:
            return self.arrays["train_inputs"], labels
        views = self.arrays[VIEWS]
        return views, np.repeat(labels, len(views) // len(labels))

    @property
    def observed_labels(self) -> np.ndarray:
        """Of all training samples, as clients see them."""
        return np.asarray(self.arrays.get(OBSERVED, self.arrays["train_labels"]))

    def frozen_bytes(self, method: type[Method]) -> int:
        """Bytes of the encoders that a client of this method downloads once."""
        return sum(int(self.meta[f"{encoder}_bytes"]) for encoder in method.frozen)


def prepare(
    config: Experiment,
    method: type[Method],
    device: torch.device,
    synthetic: bool = True,
    draw: Draw | None = None,
    extract: Extract = extract_here,
    progress: Progress | None = None,
) -> TaskData:
    """All arrays a run needs, from the store or computed now.

    Args:
        config: The resolved experiment.
        method: Its method, which says what it needs.
        device: Where encoder and generator run.
        synthetic: Whether the caller may see the server's generated images.
        draw: Where these are drawn; by default in this process.
        extract: Where images of the data are encoded.
        progress: Hears how many are.

    Raises:
        DataError: If the data cannot be read.
        ModelError: If encoder or generator cannot be loaded.
        ConfigError: If the method, the noise or the views need images and the data holds features,
            or the method needs an encoder and there is none, or has no use for views.
    """
    if wants_views(config, method):
        check_views(config, method)
    key = inputs_key(config, method)

    def make() -> Arrays:
        return _inputs(config, method, device, Parts(key), extract, progress)

    arrays = dict(shared_arrays(key, make))
    meta, where = json.loads(arrays.pop("meta").tobytes()), address(key)
    if wants_views(config, method):
        if not meta["visual_bytes"]:
            raise ConfigError(
                f"methods.{config.method}: train.augment_views encodes views of images, but "
                f"{config.data.name!r} holds precomputed features: leave it at 1"
            )
        viewed, plain = views_key(config, where), arrays["train_inputs"]

        def view() -> Arrays:
            clip = _clip(config, device)
            return encoded_views(config, clip, plain, Parts(viewed), extract, progress)

        arrays |= shared_arrays(viewed, view)
    if config.noise.active and method.uses_clients:
        load = (lambda: _clip(config, device)) if meta["visual_bytes"] else None
        spoilt = spoilt_key(config, where)
        arrays |= shared_arrays(
            spoilt, lambda: spoilt_arrays(config, arrays, len(meta["classnames"]), load)
        )
        where = address(spoilt)
    if config.models.logit_scale is not None:
        meta["logit_scale"] = config.models.logit_scale
    if not (synthetic and method.needs_synthetic(config.for_method())):
        return TaskData(arrays, meta, {}, address=where)
    text = arrays.get("text_features")
    made, name = synthetic_set(config, meta, text, device, draw)
    if method.inputs == "images":
        channels, height, width = arrays["train_inputs"].shape[1:]
        made = made | {"fitted": fitted_pictures(made, name, (channels, height, width))}
    return TaskData(arrays, meta, made, name, where)


def inputs_key(config: Experiment, method: type[Method]) -> dict[str, Any]:
    """Everything that a run's labels, inputs and class embeddings depend on."""
    return {
        "kind": "inputs",
        "format": _FORMAT,
        "inputs": method.inputs,
        "data": config.data.model_dump(mode="json"),
        "source": data_identity(config.data),
        "seed": draw_seed(config.data, config.partition_seed),
        "clip": source_identity(config.models.clip),
    }


def entry_keys(config: Experiment, method: type[Method]) -> list[dict[str, Any]]:
    """Of the entries that hold what is encoded for a run, once `prepare` has made them."""
    key = inputs_key(config, method)
    keys = [key, views_key(config, address(key))] if wants_views(config, method) else [key]
    return keys + ([inputs_key(config, MEASURED_LIKE)] if measures_sets(config, method) else [])


def measures_sets(config: Experiment, method: type[Method]) -> bool:
    """Whether sets that the server makes in rounds are compared with the data."""
    return config.evaluation.set_quality and method.made is not Method.made


def _inputs(
    config: Experiment,
    method: type[Method],
    device: torch.device,
    parts: Parts,
    extract: Extract,
    progress: Progress | None,
) -> Arrays:
    dataset = read_dataset(config.data, config.partition_seed)
    splits = {name: getattr(dataset, name) for name in SPLITS}
    arrays: Arrays = {f"{name}_labels": split.labels for name, split in splits.items()}
    columns = {
        "train_clients": dataset.train.clients,
        "train_domains": dataset.train.domains,
        "test_domains": dataset.test.domains,
    }
    arrays |= {name: column for name, column in columns.items() if column is not None}
    meta = {
        "classnames": list(dataset.classnames),
        "templates": list(dataset.templates),
        "domain_names": list(dataset.domain_names),
        "notes": list(dataset.notes),
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "logit_scale": _FEATURE_LOGIT_SCALE,
        "visual_bytes": 0,
        "text": None,  # the hash of embeddings that the data brings along
        "text_bytes": 0,
    }
    text = dataset.text_features
    if text is not None:
        meta["text"] = hashlib.sha256(text.tobytes()).hexdigest()
    if dataset.train.features is not None:
        if method.inputs != "features":
            raise ConfigError(
                f"method {config.method!r} trains on images, but {config.data.name!r} holds "
                f"precomputed features: use a method that works on features, or images"
            )
        for name, split in splits.items():
            arrays[f"{name}_inputs"] = _unit(split.features)
    else:
        images = method.inputs == "images"
        clip = None if images and config.models.clip is None else _clip(config, device)
        if clip is None or images:
            found = own_pictures(splits, progress)
        else:
            pixels = method.inputs == "pixels"
            pictures = {n: s.images for n, s in splits.items() if s.images is not None}
            found = encode_splits(config, clip, pixels, pictures, parts, extract, progress)
        arrays |= {f"{name}_inputs": rows for name, rows in found.items()}
        meta["embed_dim"] = 0
        if clip is not None:
            meta |= {
                "logit_scale": clip.logit_scale,
                "visual_bytes": clip.visual_bytes,
                "text_bytes": clip.text_bytes,
                "embed_dim": clip.embed_dim,
            }
            if text is None:
                text = clip.class_embeddings(dataset.classnames, dataset.templates).cpu().numpy()
    if text is not None:
        arrays["text_features"] = _unit(text)
    meta.setdefault("embed_dim", int(arrays["train_inputs"].shape[-1]))
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    return arrays


def public_rows(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of a few public labelled samples of the validation split, sorted by class."""
    rng = numpy_rng(seed, "public")
    shots = min(shots, _PUBLIC_SHOTS_LIMIT)
    rows = [
        rng.permutation(np.flatnonzero(labels == c))[:shots] for c in range(int(labels.max()) + 1)
    ]
    return np.concatenate(rows)


def _clip(config: Experiment, device: torch.device) -> Clip:
    from fedsim.models.clip import load_clip

    if config.models.clip is None:
        raise ConfigError(
            f"models.clip is null, but {config.data.name!r} holds images and {config.use!r} works "
            f"with a frozen encoder: name one, such as tiny-clip or ViT-B-32/openai"
        )
    return load_clip(config.models.clip, device=str(device))


def _unit(features: np.ndarray | None) -> np.ndarray:
    assert features is not None
    norm = np.linalg.norm(features.astype(np.float64), axis=-1, keepdims=True)
    return (features / np.maximum(norm, 1e-12)).astype(np.float32)
