"""Random views of the training images, encoded beside the images: augmentation for frozen features.

A frozen encoder runs once, so random crops must be encoded beforehand. Each training image gets V
forms (`train.augment_views`): itself, and V - 1 random crops. A local epoch draws one of them for
every sample, with the run's seed (`fedsim.engine.batching`). The crops themselves follow from the
data alone, so that all runs and seeds share them. A smaller V has the first views of a larger one.
"""

from __future__ import annotations

import numpy as np

from fedsim.config.sections import NoiseConfig
from fedsim.errors import ConfigError
from fedsim.inputs.encode import Encoder
from fedsim.models.random_views import RandomViews
from fedsim.storage.array_cache import Arrays, InputStep

VIEWS = "train_views"
_FORMAT = 1
"""Raised whenever the stored arrays change; older entries are then not found."""


def check_views(inputs: str, noise: NoiseConfig, method: str) -> None:
    """Refuse views where there is nothing to encode, or something else than an image.

    Raises:
        ConfigError: The method trains on pixels, or noise corrupts images.
    """
    where = f"methods.{method}: train.augment_views"
    if inputs != "features":
        raise ConfigError(
            f"{where} is for methods on features of a frozen encoder, and this one trains on "
            f"pixels: leave it at 1"
        )
    if noise.active and noise.images != "none":
        raise ConfigError(
            f"{where} crops images as they are, and noise.images corrupts them: leave one of the "
            f"two out"
        )


def views_step(count: int, flip: bool, plain: InputStep, encoder: Encoder) -> InputStep:
    """Features of all forms of every training image.

    Args:
        count: V, the forms of each image.
        flip: Whether half of the crops are flipped left to right.
        plain: The step with the images' own features, float32 `(num_train, d)`.
        encoder: The frozen encoder.

    Returns:
        A step to `train_views` float32 `(num_train * V, d)` of unit length. View v of a sample is
        row `sample * V + v`; view 0 is the image's own feature, bit for bit. The step raises
        `ConfigError` if the data holds features.
    """
    key = {"kind": "views", "format": _FORMAT, "plain": plain.address}
    key |= {"views": count, "flip": flip}

    def make() -> Arrays:
        images, name = encoder.source.dataset.train.images, encoder.source.settings.name
        if images is None:
            raise ConfigError(
                f"methods.{encoder.method}: train.augment_views encodes views of images, but "
                f"{name!r} holds precomputed features: leave it at 1"
            )
        clip = encoder.load()
        crops = {
            str(number): RandomViews(images, number, clip.image_size, flip)
            for number in range(1, count)
        }
        found = encoder.encode(clip, False, crops, key)
        whole = np.stack([plain.arrays["train_inputs"], *found.values()], axis=1)
        return {VIEWS: whole.reshape(-1, whole.shape[-1])}

    return InputStep(key, make)
