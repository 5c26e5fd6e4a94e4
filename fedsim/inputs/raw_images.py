"""Images for networks trained from scratch: those of the data, and the server's generated ones.

Both are uint8 `(n, c, h, w)` at the data's own size and channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.data.containers import Split
from fedsim.data.images import ImagePaths
from fedsim.errors import DataError
from fedsim.inputs.encode import Progress, chunks
from fedsim.inputs.step import InputStep
from fedsim.models.image_arrays import channels_first, fit_images
from fedsim.models.networks import Shape

_FORMAT = 1
"""Raised whenever what is stored here changes; older entries are then not found."""
_CHUNK = 256
"""Files decoded at once."""


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
        found[name] = _read(split)
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


def _read(split: Split) -> np.ndarray:
    assert split.images is not None
    if not isinstance(split.images, ImagePaths):
        return channels_first(split.images)
    out = np.zeros((0, 0, 0, 3), np.uint8)
    for rows in chunks(np.arange(len(split)), _CHUNK):
        chunk = split.images.load(rows)
        if not len(out):
            out = np.empty((len(split), *chunk.shape[1:]), np.uint8)
        if chunk.shape[1:] != out.shape[1:]:
            raise DataError(
                f"images are of {_size(chunk.shape[1:])} and of {_size(out.shape[1:])} values: "
                f"set data.image_size"
            )
        out[rows] = chunk
    return channels_first(out)


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
