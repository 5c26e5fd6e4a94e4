"""Random views of the training images, encoded beside the images: augmentation for frozen features.

What is random in every pass has to be encoded beforehand, once. Each training image gets V forms
(`train.augment_views`): itself, and V - 1 random crops. A local epoch draws one of them for every
sample, with the run's seed (`fedsim.engine.batching`); the crops themselves follow from the data
alone, so that all runs and seeds share them. Fewer views are the beginning of more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.config import Experiment
from fedsim.data.from_config import read_dataset
from fedsim.errors import ConfigError
from fedsim.inputs.encode import Extract, Progress, encode_splits
from fedsim.methods.base import Method
from fedsim.models.clip import Clip
from fedsim.models.random_views import RandomViews
from fedsim.storage.array_cache import Arrays, Parts

VIEWS = "train_views"
_FORMAT = 1
"""Raised whenever what `encoded_views` makes changes; older entries are then not found."""


def wants_views(config: Experiment, method: type[Method]) -> bool:
    """Whether clients of this run train on more than the images as they are."""
    return config.train.augment_views > 1 and method.uses_clients


def check_views(config: Experiment, method: type[Method]) -> None:
    """Refuse views where there is nothing to encode, or something else than an image.

    Raises:
        ConfigError: The method trains on pixels, or noise corrupts images.
    """
    where = f"methods.{config.method}: train.augment_views"
    if method.inputs != "features":
        raise ConfigError(
            f"{where} is for methods on features of a frozen encoder, and {config.use} trains on "
            f"pixels: leave it at 1"
        )
    if config.noise.active and config.noise.images != "none":
        raise ConfigError(
            f"{where} crops images as they are, and noise.images corrupts them: leave one of the "
            f"two out"
        )


def views_key(config: Experiment, plain: str) -> dict[str, Any]:
    """Everything that the views depend on; `plain` is the address of the images' own features."""
    train = config.train
    return {
        "kind": "views",
        "format": _FORMAT,
        "plain": plain,
        "views": train.augment_views,
        "flip": train.augment_flip,
    }


def encoded_views(
    config: Experiment,
    clip: Clip,
    plain: np.ndarray,
    parts: Parts,
    extract: Extract,
    progress: Progress | None = None,
) -> Arrays:
    """Features of all forms of every training image.

    Args:
        config: The resolved experiment.
        clip: The encoder.
        plain: float32 `(num_train, d)`, the images' own.
        parts: Where finished shards are kept.
        extract: Where views are encoded.
        progress: Hears how many are.

    Returns:
        `train_views` float32 `(num_train * V, d)` of unit length. Row `sample * V + view`; view 0
        is `plain`, bit for bit.

    Raises:
        DataError: An image cannot be decoded, or a shard cannot be kept.
    """
    images, train = read_dataset(config.data, config.partition_seed).train.images, config.train
    assert images is not None
    views = {
        str(number): RandomViews(images, number, clip.image_size, train.augment_flip)
        for number in range(1, train.augment_views)
    }
    found = encode_splits(config, clip, False, views, parts, extract, progress)
    whole = np.stack([plain, *found.values()], axis=1)
    return {VIEWS: whole.reshape(-1, plain.shape[1])}
