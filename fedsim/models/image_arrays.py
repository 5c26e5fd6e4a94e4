"""Images as networks trained from scratch take them: at the data's own size and channels.

They are stored as uint8 `(n, c, h, w)` and given to a network as `x / 127.5 - 1`, in [-1, 1].
Generators and decoders of latents draw in this range, so distilled images are in the clients'
representation. Normalisation needs no statistics of clients' data.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fedsim.models.networks import Shape


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1].

    >>> to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return pixels.float() / 127.5 - 1


def from_unit_range(images: Tensor) -> Tensor:
    """Floats -> the nearest uint8; values outside [-1, 1] are cut off.

    >>> from_unit_range(torch.tensor([-1.0, 0.0, 7.0])).tolist()
    [0, 128, 255]
    """
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def channels_first(images: np.ndarray) -> np.ndarray:
    """`(n, h, w)` or `(n, h, w, 3)` -> `(n, 1 or 3, h, w)`, without a copy."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def fit_images(images: Iterable[np.ndarray], shape: Shape) -> np.ndarray:
    """Bring colour images to the data's size and channels.

    The largest central part of the right proportions is resized (bicubic, averaging where it
    shrinks); for one channel, colours become grey by their luma.

    Args:
        images: uint8 `(H, W, 3)` each, one or more.
        shape: `(c, h, w)` of the data, c = 1 or 3.

    Returns:
        uint8 `(n, c, h, w)`.
    """
    channels, height, width = shape
    found = []
    for image in images:
        fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.BICUBIC)
        found.append(np.asarray(fitted.convert("L") if channels == 1 else fitted))
    return np.ascontiguousarray(channels_first(np.stack(found)))
