"""The frozen encoder over every image, shard by shard, each kept as soon as it is finished.

With a large encoder this takes hours. A kill costs the shards in flight; the next process that
prepares the same data goes on from there. `Extract` hides where shards are encoded: in this
process, or on actors that hold GPU fractions. A shard's bits follow from the data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.data.from_config import DataSource
from fedsim.data.images import ImagePaths
from fedsim.errors import ConfigError
from fedsim.models.clip import Clip, load_clip
from fedsim.models.random_views import RandomViews
from fedsim.storage.array_cache import UnfinishedEntry

SHARD = 1024
"""Images of a shard; the last one of a split may have fewer."""
BATCH = 256
"""Images encoded at once. Neighbours change a feature by rounding: see `_FORMAT` of `data_arrays`.
"""

Images = np.ndarray | ImagePaths | RandomViews
"""uint8 (n, height, width) or (n, height, width, 3), or an object that loads these when asked."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Consecutive images of one split.

    Attributes:
        number: Among the shards of all splits.
        images: Still undecoded where they are files.
    """

    number: int
    images: Images


Extract = Callable[[Clip, bool, Sequence[Shard]], Iterator[tuple[int, np.ndarray]]]
"""Encodes shards into pixels or features; yields the number and the rows of each, in any order."""

Progress = Callable[[int, int], None]
"""Called with the number of encoded images, and with the number of all images."""


def chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive parts of at most `size` rows.

    >>> [part.tolist() for part in chunks(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def encode(clip: Clip, pixels: bool, images: Images) -> np.ndarray:
    """One shard: uint8 pixels `(n, 3, size, size)` as the encoder takes them, or its features.

    Raises:
        DataError: A file cannot be decoded.
    """
    found = []
    for rows in chunks(np.arange(len(images)), BATCH):  # a whole decoded shard takes gigabytes
        raw = images[rows] if isinstance(images, np.ndarray) else images.load(rows)
        prepared = clip.prepare(raw)
        found.append((prepared if pixels else clip.encode_images(prepared, BATCH)).cpu().numpy())
    return np.concatenate(found)


def extract_here(
    clip: Clip, pixels: bool, shards: Sequence[Shard]
) -> Iterator[tuple[int, np.ndarray]]:
    """Encode shards in this process, one after the other."""
    for shard in shards:
        yield shard.number, encode(clip, pixels, shard.images)


@dataclass(frozen=True, eq=False)
class Encoder:
    """The frozen encoder of a run, its data, and where it works.

    Attributes:
        spec: `models.clip`.
        source: The data set.
        method: What errors call the run's method.
        device: Where this process loads it.
        extract: Where shards are encoded.
        progress: Called after every finished shard.
    """

    spec: str | None
    source: DataSource
    method: str
    device: str = "cpu"
    extract: Extract = extract_here
    progress: Progress | None = None

    def load(self) -> Clip:
        """The encoder itself. No reference is kept, so that its memory is free after use.

        Raises:
            ConfigError: `models.clip` is null.
        """
        if self.spec is None:
            raise ConfigError(
                f"models.clip is null, but {self.source.settings.name!r} holds images and "
                f"{self.method!r} works with a frozen encoder: name one, such as tiny-clip or "
                f"ViT-B-32/openai"
            )
        return load_clip(self.spec, self.device)

    def encode(
        self, clip: Clip, pixels: bool, splits: Mapping[str, Images], key: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Every split: shards that are stored already, and the others encoded now.

        Args:
            clip: The loaded encoder.
            pixels: Whether its input is wanted, instead of its features.
            splits: Images by split.
            key: Of the entry that they are for, beside which finished shards are kept.

        Returns:
            By split: uint8 `(n, 3, size, size)`, or float32 `(n, d)` of unit length.

        Raises:
            DataError: An image cannot be decoded, or a shard cannot be kept.
        """
        shape = (3, clip.image_size, clip.image_size) if pixels else (clip.embed_dim,)
        empty = np.empty((0, *shape), np.uint8 if pixels else np.float32)
        shards = [
            (name, split[start : start + SHARD])
            for name, split in splits.items()
            for start in range(0, len(split), SHARD)
        ]
        found, missing, unfinished = dict[int, np.ndarray](), list[Shard](), UnfinishedEntry(key)
        for number, (_, images) in enumerate(shards):
            stored = unfinished.read(number)
            if stored is not None and stored.shape == (len(images), *shape):
                found[number] = stored
            else:
                missing.append(Shard(number, images))
        self._tell(found, shards)
        for number, rows in self.extract(clip, pixels, missing):
            found[number] = unfinished.kept(number, rows)
            self._tell(found, shards)
        return {
            split: np.concatenate(
                [empty, *(found[n] for n, (name, _) in enumerate(shards) if name == split)]
            )
            for split in splits
        }

    def _tell(self, found: Mapping[int, np.ndarray], shards: Sequence[tuple[str, Images]]) -> None:
        if self.progress is not None:
            total = sum(len(images) for _, images in shards)
            self.progress(sum(map(len, found.values())), total)
