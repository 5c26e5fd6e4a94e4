"""Random views of an image: averaged into one key, or encoded one by one to train on.

Tip-Adapter (Zhang et al., ECCV 2022) averages: every key is the mean feature of ten random views of
one image, made to length 1. A view is a random crop of half to all of the image's area, brought to
the encoder's size (bicubic). Tip-Adapter also flips half of the views; a mirrored digit or letter
is another one or none, so flipping is asked for and never assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fedsim.data.images import ImagePaths
from fedsim.models.clip import Clip
from fedsim.seeding import numpy_rng

_SCALE = (0.5, 1.0)
"""Share of the image's area in a view."""
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_SEED = 0
"""Seed of `RandomViews`. It is not the run's, so that views are encoded once for all runs."""


@dataclass(frozen=True, eq=False)
class RandomViews:
    """One random view of each image, made on demand.

    Attributes:
        images: uint8 (n, height, width) or (n, height, width, 3), or files still undecoded.
        number: Number of the view among the views of the same image.
        size: Side of a view, px.
        flip: Whether half of the views are flipped left to right.
        first: Place of the first image in its split. Place and number alone determine a view.
    """

    images: np.ndarray | ImagePaths
    number: int
    size: int
    flip: bool = False
    first: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> RandomViews:
        """The same views of consecutive images."""
        start = part.indices(len(self))[0]
        return replace(self, images=self.images[part], first=self.first + start)

    def load(self, indices: np.ndarray) -> list[Image.Image]:
        """The views at `indices`, int (n,).

        Raises:
            DataError: A file cannot be decoded.
        """
        images = self.images
        raw = images[indices] if isinstance(images, np.ndarray) else images.load(indices)
        return [
            random_view(
                Image.fromarray(image),
                self.size,
                numpy_rng(_SEED, "train_view", self.first + int(index), self.number),
                self.flip,
            )
            for index, image in zip(indices, raw, strict=True)
        ]


def averaged_features(
    clip: Clip, views: Sequence[Sequence[Image.Image]], batch_size: int = 256
) -> Tensor:
    """The mean feature of the views of each image.

    The encoder's features are averaged as they come and normalised once, after the mean.

    Args:
        clip: The frozen encoder.
        views: Per image, its views: equally many for all.
        batch_size: Views encoded at once.

    Returns:
        float32 (num_images, embed_dim), of length 1, on the encoder's device.
    """
    flat = clip.prepare([view for of_image in views for view in of_image])
    with torch.no_grad():
        parts = [
            clip.visual(clip.normalise(part.to(clip.device))).float()
            for part in flat.split(batch_size)
        ]
    means = torch.cat(parts).view(len(views), len(views[0]), -1).mean(1)
    return functional.normalize(means, dim=-1)


def random_view(
    image: Image.Image, size: int, rng: np.random.Generator, flip: bool = False
) -> Image.Image:
    """A random crop of `image` at `size` x `size` px, flipped left to right half of the time.

    Crops have an aspect ratio between 3:4 and 4:3, log-uniform; an image in which none of ten
    fits gives its largest centred crop of an allowed ratio.
    """
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=_crop(image.size, rng))
    mirrored = rng.random() < 0.5  # drawn either way: flipping does not move the crops
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and mirrored else view


def _crop(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, px."""
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_SCALE)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
