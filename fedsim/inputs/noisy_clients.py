"""The training rows of spoilt clients in the run's arrays; all other rows stay as they are.

A training row belongs to one client, so its corrupted form can stand in its place. Only rows that a
client trains on change: held-out rows, val and test stay clean, and so do `train_labels`, which
the split is made from. Clients train on `train_labels_observed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedsim.config.sections import NoiseConfig
from fedsim.data.from_config import Holdings, partition_clients
from fedsim.data.noise import observed_labels, spoil_features, spoil_images
from fedsim.inputs.data_arrays import meta_of
from fedsim.inputs.encode import Encoder, chunks
from fedsim.storage.array_cache import Arrays, InputStep

OBSERVED = "train_labels_observed"
_FORMAT = 1
"""Raised whenever the stored arrays change; older entries are then not found."""
_CHUNK = 1024


def split_of(arrays: Arrays, **split_by: Any) -> Holdings:
    """The rows of every client (see `partition_clients`)."""
    return partition_clients(
        arrays["train_labels"],
        arrays.get("train_clients"),
        arrays.get("train_domains"),
        **split_by,
    )


def noise_step(clean: InputStep, encoder: Encoder, split_by: Mapping[str, Any]) -> InputStep:
    """The arrays that noise changes.

    Args:
        clean: The step with the data's own arrays.
        encoder: The frozen encoder, and the data set.
        split_by: Settings of `partition_clients`, with `noise` that is active.

    Returns:
        A step to `train_labels_observed`, and `train_inputs` where images are corrupted. It raises
        `ConfigError` if the noise cannot be applied to this data, or to so few clients.
    """
    noise: NoiseConfig = split_by["noise"]
    seed: int = split_by["seed"]
    key = {
        "kind": "spoilt",
        "format": _FORMAT,
        "clean": clean.address,
        "noise": noise.model_dump(mode="json"),
        # Older versions wrote this option for every scheme.
        "partition": split_by["partition"].model_dump(mode="json"),
        "seed": seed,
        "holdout_fraction": split_by["holdout_fraction"],
    }

    def make() -> Arrays:
        arrays, meta = clean.arrays, meta_of(clean)
        split, labels = split_of(arrays, **split_by), np.asarray(arrays["train_labels"])
        rows_of = {client: split.fit[client] for client in split.spoilt}
        wrong = observed_labels(labels, rows_of, noise.labels, len(meta["classnames"]), seed)
        if noise.images == "none":
            return {OBSERVED: wrong}
        rows = np.sort(np.concatenate(list(rows_of.values())))
        inputs = np.array(arrays["train_inputs"])
        if inputs.ndim == 4:  # as the encoder takes them, or at their own size
            inputs[rows] = spoil_images(inputs[rows], rows, noise, seed)
        elif not meta["visual_bytes"]:
            inputs[rows] = spoil_features(inputs[rows], rows, noise, seed)
        else:
            clip = encoder.load()
            for chunk in chunks(rows, _CHUNK):
                pixels = clip.prepare(encoder.source.dataset.train.load_images(chunk)).numpy()
                spoilt = torch.from_numpy(spoil_images(pixels, chunk, noise, seed))
                inputs[chunk] = clip.encode_images(spoilt).cpu().numpy()
        return {OBSERVED: wrong, "train_inputs": inputs}

    return InputStep(key, make)
