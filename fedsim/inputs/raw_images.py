"""Images for networks trained from scratch: those of the data, and the server's generated ones.

Both are uint8 `(n, c, h, w)` at the data's own size and channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.data.containers import Split
from fedsim.errors import DataError
from fedsim.inputs.encode import Progress
from fedsim.models.image_arrays import channels_first, fit_images
from fedsim.models.networks import Shape
from fedsim.storage.array_cache import InputStep

_FORMAT = 1
"""Raised whenever what is stored here changes; older entries are then not found."""


def own_pictures(
    splits: Mapping[str, Split], progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """The images of every split, uint8 `(n, c, h, w)`, all of one shape.

    Args:
        splits: Images by split.
        progress: Called with the number of decoded images.

    Raises:
        DataError: A file cannot be decoded, or splits have images of different shapes.
    """
    total, done = sum(map(len, splits.values())), 0
    found: dict[str, np.ndarray] = {}
    for name, split in splits.items():
        found[name] = channels_first(split.load_images())
        done += len(split)
        if progress is not None:
            progress(done, total)
    shape = next(images.shape[1:] for images in found.values() if len(images))
    for name, images in found.items():
        if not len(images):
            found[name] = np.zeros((0, *shape), np.uint8)
        elif images.shape[1:] != shape:
            raise DataError(
                f"the {name} split has images of {_size(images.shape[1:])}, the first split of "
                f"{_size(shape)}: set data.image_size, or bring them to one size"
            )
    return found


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def fitted_step(made: InputStep, shape: Shape) -> InputStep:
    """The generated images of a synthetic set at the data's size and channels, in its order.

    Args:
        made: The step to the set, with `images`.
        shape: Of the data's images.

    Returns:
        A step to `images` uint8 `(n, c, h, w)`.
    """
    key = {
        "kind": "fitted",
        "format": _FORMAT,
        "synthetic": made.address,
        "shape": list(shape),
    }
    return InputStep(key, lambda: {"images": fit_images(made.arrays["images"], shape)})
