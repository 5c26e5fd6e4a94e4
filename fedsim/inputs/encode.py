"""The frozen encoder over every image, shard by shard, each kept as soon as it is finished.

With a large encoder this takes hours. A kill costs the shards in flight; whoever prepares the same
data next goes on from there. Where shards are encoded is behind `Extract`: this process, or actors
that hold GPU fractions. What is in a shard follows from the data alone, and so do the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.config import Experiment
from fedsim.data.images import ImagePaths
from fedsim.models.clip import Clip
from fedsim.models.random_views import RandomViews
from fedsim.storage.array_cache import Parts

SHARD = 1024
"""Images of a shard; the last one of a split may have fewer."""
BATCH = 256
"""Images encoded at once. Neighbours change a feature by rounding: see `_FORMAT` of `prepare`."""

Images = np.ndarray | ImagePaths | RandomViews
"""uint8 (n, height, width) or (n, height, width, 3), or what makes these when it is asked to."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Consecutive images of one split.

    Attributes:
        number: Among the shards of all splits.
        images: Still undecoded where they are files.
    """

    number: int
    images: Images


Extract = Callable[[Experiment, Clip, bool, Sequence[Shard]], Iterator[tuple[int, np.ndarray]]]
"""Encodes every shard, into pixels or features; yields its number and rows, in any order."""

Progress = Callable[[int, int], None]
"""Called with the number of images that are encoded, and of all."""


def encode(clip: Clip, pixels: bool, images: Images) -> np.ndarray:
    """One shard: uint8 pixels `(n, 3, size, size)` as the encoder takes them, or its features.

    Raises:
        DataError: A file cannot be decoded.
    """
    found = []
    for start in range(0, len(images), BATCH):  # decoded images of a whole shard take gigabytes
        rows = np.arange(start, min(start + BATCH, len(images)))
        raw = images[rows] if isinstance(images, np.ndarray) else images.load(rows)
        prepared = clip.prepare(raw)
        found.append((prepared if pixels else clip.encode_images(prepared, BATCH)).cpu().numpy())
    return np.concatenate(found)


def extract_here(
    config: Experiment, clip: Clip, pixels: bool, shards: Sequence[Shard]
) -> Iterator[tuple[int, np.ndarray]]:
    """Encode shards in this process, one after the other."""
    for shard in shards:
        yield shard.number, encode(clip, pixels, shard.images)


def encode_splits(
    config: Experiment,
    clip: Clip,
    pixels: bool,
    splits: Mapping[str, Images],
    parts: Parts,
    extract: Extract = extract_here,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """What the encoder makes of every split: shards found in `parts`, the others encoded now.

    Args:
        config: The resolved experiment.
        clip: The encoder.
        pixels: Whether its input is wanted, instead of its features.
        splits: Images by split.
        parts: Where finished shards are kept.
        extract: Where the missing ones are encoded.
        progress: Hears of every finished shard.

    Returns:
        By split: uint8 `(n, 3, size, size)`, or float32 `(n, d)` of unit length.

    Raises:
        DataError: An image cannot be decoded, or a shard cannot be kept.
    """
    shape = (3, clip.image_size, clip.image_size) if pixels else (clip.embed_dim,)
    empty = np.empty((0, *shape), np.uint8 if pixels else np.float32)
    shards = {name: list[Shard]() for name in splits}
    number = 0
    for name, split in splits.items():
        for start in range(0, len(split), SHARD):
            shards[name].append(Shard(number, split[start : start + SHARD]))
            number += 1
    found: dict[int, np.ndarray] = {}
    missing = []
    for shard in [shard for name in splits for shard in shards[name]]:
        stored = parts.read(shard.number)
        if stored is not None and stored.shape == (len(shard.images), *shape):
            found[shard.number] = stored
        else:
            missing.append(shard)
    total = sum(map(len, splits.values()))

    def tell() -> None:
        if progress is not None:
            progress(sum(map(len, found.values())), total)

    tell()
    for number, rows in extract(config, clip, pixels, missing):
        parts.write(number, rows)
        stored = parts.read(number)  # mapped: what is finished need not stay in memory
        found[number] = rows if stored is None else stored
        tell()
    return {
        name: np.concatenate([empty, *(found[shard.number] for shard in shards[name])])
        for name in splits
    }
