"""Pixels: arrays made 8-bit and channels-last, and image files decoded when they are needed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_WHOLE_HASH_BYTES = 2**30
"""Splits up to this size are hashed whole, larger ones by the ends of every file."""
_END_BYTES = 2**16


@dataclass(frozen=True, eq=False)
class ImagePaths:
    """Images of a folder, hashed and decoded on demand: a few of a million cost little.

    Attributes:
        root: Absolute folder. All nodes of a cluster must see it.
        files: Paths relative to `root`, (N,).
        image_size: Side in pixels to which images are brought (shorter side resized, bicubic,
            then centre-cropped); None = as they are, all of one size.
    """

    root: Path
    files: tuple[str, ...]
    image_size: int | None

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def digests(self) -> np.ndarray:
        """Hash of each file, bytes (N,); every header is checked on the way.

        Raises:
            DataError: A file is not an image, or sizes differ and `image_size` is None.
        """
        from PIL import Image

        paths = [self.root / file for file in self.files]
        whole = sum(map(_size, paths)) <= _WHOLE_HASH_BYTES
        digests, first = [], None
        for path in paths:
            try:
                digest, data = _digest(path, whole)
                with Image.open(io.BytesIO(data) if whole else path) as image:
                    shape = (image.height, image.width)
            except Exception as error:  # decoders raise errors of any class on damaged files
                raise DataError(f"{path}: not a readable image ({_brief(error)})") from error
            first = first or shape
            if self.image_size is None and shape != first:
                raise _mixed_sizes(str(path), shape, first)
            digests.append(digest)
        return np.array(digests, dtype="S32")

    def __getitem__(self, part: slice | np.ndarray) -> ImagePaths:
        """Some images, still undecoded: a slice, indices or a mask, as of an array of images."""
        files = tuple(self.files[i] for i in np.arange(len(self))[part])
        taken = ImagePaths(self.root, files, self.image_size)
        if "digests" in self.__dict__:
            taken.__dict__["digests"] = self.digests[part]
        return taken

    def load(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Decode images.

        Args:
            indices: int (n,), which; None = all.

        Returns:
            uint8 (n, height, width, 3), RGB.

        Raises:
            DataError: A file is gone, truncated, or of another size than the first.
        """
        chosen = range(len(self)) if indices is None else indices
        images = np.zeros((0, 0, 0, 3), dtype=np.uint8)
        for at, index in enumerate(chosen):
            file = self.root / self.files[int(index)]
            try:
                image = pixels(file.read_bytes(), str(file), self.image_size)
            except OSError as error:
                raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
            if not at:
                images = np.empty((len(chosen), *image.shape), dtype=np.uint8)
            if image.shape != images.shape[1:]:
                raise _mixed_sizes(str(file), image.shape, images.shape[1:])
            images[at] = image
        return images


def _mixed_sizes(where: str, here: tuple[int, ...], first: tuple[int, ...]) -> DataError:
    return DataError(
        f"{where} is {here[1]}x{here[0]} pixels, others are {first[1]}x{first[0]}: "
        "set image_size, e.g. image_size: 224"
    )


def _size(path: Path) -> int:
    """Bytes of a file; 0 for a broken link, which fails when it is opened."""
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, whole: bool) -> tuple[bytes, bytes]:
    """Hash of a file (its ends and size when not `whole`), and the bytes that were read."""
    with path.open("rb") as handle:
        data = handle.read() if whole else handle.read(_END_BYTES)
        key = data
        if not whole:
            size = handle.seek(0, 2)
            handle.seek(max(size - _END_BYTES, 0))
            key = data + handle.read() + str(size).encode()
    return hashlib.blake2b(key, digest_size=16).hexdigest().encode(), data


def pixels(source: bytes | Image, where: str, image_size: int | None) -> np.ndarray:
    """One image as uint8 (height, width, 3).

    Args:
        source: An encoded file, or a PIL image.
        where: What to call it in an error.
        image_size: See `ImagePaths`.

    Raises:
        DataError: It cannot be decoded, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{where}: {image.mode} pixels are not supported: convert to 8 bits")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("RGB")
        if image_size is not None:
            image = _resize(image, image_size)
        return np.asarray(image, dtype=np.uint8)
    except DataError:
        raise
    except Exception as error:  # decoders raise errors of any class on damaged files
        raise DataError(f"{where}: not a readable image ({_brief(error)})") from error


def _resize(image: Image, size: int) -> Image:
    """Shorter side to `size`, bicubic, then the centre square: what CLIP's preprocessing does."""
    from PIL.Image import Resampling

    width, height = image.size
    scale = size / min(width, height)
    wide, high = max(size, int(width * scale)), max(size, int(height * scale))
    if (wide, high) != (width, height):
        image = image.resize((wide, high), Resampling.BICUBIC)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _brief(error: BaseException) -> str:
    """An error's first line, without the address of a memory buffer."""
    text = str(error).split("\n")[0] or type(error).__name__
    return "unknown format" if "cannot identify" in text else text


def channels_last(array: np.ndarray, where: str) -> np.ndarray:
    """Bring images to (N, H, W) or (N, H, W, 3).

    Channels are recognised as the last axis of size 1 or 3, else as the second one.

    Raises:
        DataError: The shape is not one of images.

    >>> channels_last(np.zeros((5, 3, 32, 32)), "x").shape
    (5, 32, 32, 3)
    """
    if array.ndim == 4 and array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, -1)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3):
        if 0 in array.shape[1:]:
            raise DataError(f"{where} has shape {array.shape}: images have no pixels")
        return array
    raise DataError(
        f"{where} has shape {array.shape}: images must be (N, H, W), (N, H, W, 1 or 3) or "
        "(N, 1 or 3, H, W); features must be float (N, d)"
    )


def to_uint8(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring images to 8 bits, all splits on one scale.

    Args:
        arrays: What to call it in an error -> images; uint8, integers in 0..255, floats in
            [0, 1] (scaled by 255) or in [0, 255] (rounded), or booleans.

    Raises:
        DataError: NaN or infinite values, or values outside those ranges.

    >>> to_uint8({"x": np.array([[[0.0, 1.0, 0.5]]])})["x"].tolist()
    [[[0, 255, 128]]]
    """
    if all(array.dtype == np.uint8 for array in arrays.values()):
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    high: Any = 0
    for name, array in arrays.items():
        if array.dtype.kind not in "buif":
            raise DataError(f"{name} has dtype {array.dtype}: images must be numbers")
        if not array.size:
            continue
        check_finite(array, name)
        low, high = array.min(), max(high, array.max())
        if low < 0 or high > 255:
            raise DataError(
                f"{name} holds values from {low:g} to {array.max():g}: give images in [0, 1] or "
                "[0, 255], before any normalisation"
            )
    unit = all(array.dtype.kind in "fb" for array in arrays.values()) and high <= 1
    return {
        name: np.floor(array * (255.0 if unit else 1.0) + 0.5).astype(np.uint8)
        for name, array in arrays.items()
    }


def check_finite(array: np.ndarray, where: str) -> None:
    """Refuse NaN and infinite values, saying how many rows and which is the first.

    Raises:
        DataError: There are some.
    """
    if array.dtype.kind != "f":
        return
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise DataError(
            f"{where}: {int(bad.sum())} of {len(bad)} rows hold NaN or infinite values, the first "
            f"is row {int(np.argmax(bad))}: drop or repair them"
        )
