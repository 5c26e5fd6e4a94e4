"""What spoilt clients train on, in the run's arrays: their rows are replaced, all others stay.

A training row belongs to one client, so its corrupted form can stand in its place. Only rows that a
client trains on change: held-out rows, val and test stay clean, and so do `train_labels`, which
the split is made from. What clients take for labels is `train_labels_observed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedsim.config import Experiment
from fedsim.data.from_config import read_dataset, split_clients
from fedsim.data.noise import observed_labels, spoil_features, spoil_images
from fedsim.models.clip import Clip
from fedsim.storage.array_cache import Arrays

OBSERVED = "train_labels_observed"
_FORMAT = 1
"""Raised whenever what `spoilt_arrays` makes changes; older entries are then not found."""
_CHUNK = 1024


def spoilt_key(config: Experiment, clean: str) -> dict[str, Any]:
    """Everything that the spoilt arrays depend on; `clean` is the address of the clean ones."""
    return {
        "kind": "spoilt",
        "format": _FORMAT,
        "clean": clean,
        "noise": config.noise.model_dump(mode="json"),
        "partition": config.partition.model_dump(mode="json"),
        "seed": config.partition_seed,
        "holdout_fraction": config.evaluation.holdout_fraction,
    }


def spoilt_arrays(
    config: Experiment, arrays: Arrays, num_classes: int, load_clip: Callable[[], Clip] | None
) -> Arrays:
    """The arrays that noise changes.

    Args:
        config: The resolved experiment, with `noise` that is active.
        arrays: The clean ones of `prepare`.
        num_classes: Of the data.
        load_clip: The encoder of the images; None where the data holds features.

    Returns:
        `train_labels_observed`, and `train_inputs` where images are corrupted.

    Raises:
        ConfigError: The noise cannot be applied to this data, or to so few clients.
    """
    labels, seed, noise = np.asarray(arrays["train_labels"]), config.partition_seed, config.noise
    split = split_clients(
        labels, arrays.get("train_clients"), arrays.get("train_domains"), **config.for_split()
    )
    rows_of = {client: split.fit[client] for client in split.spoilt}
    changed = {OBSERVED: observed_labels(labels, rows_of, noise.labels, num_classes, seed)}
    if noise.images == "none":
        return changed
    rows = np.sort(np.concatenate(list(rows_of.values())))
    inputs = np.array(arrays["train_inputs"])
    if inputs.ndim == 4:  # as the encoder takes them, or at their own size
        inputs[rows] = spoil_images(inputs[rows], rows, noise, seed)
    elif load_clip is None:
        inputs[rows] = spoil_features(inputs[rows], rows, noise, seed)
    else:
        clip, train = load_clip(), read_dataset(config.data, config.partition_seed).train
        for chunk in np.array_split(rows, range(_CHUNK, len(rows), _CHUNK)):
            pixels = clip.prepare(train.load_images(chunk)).numpy()
            spoilt = torch.from_numpy(spoil_images(pixels, chunk, noise, seed))
            inputs[chunk] = clip.encode_images(spoilt).cpu().numpy()
    return changed | {"train_inputs": inputs}
