"""The server's class-balanced synthetic set: drawn or read, chosen, encoded, stored.

Image i of class c is drawn from prompt i (templates taken in turn) and the seed
`derive(train_seed, "synthetic", c, i)`. Neither depends on how many images are asked for or on the
filter: without a filter a smaller set is the beginning of a larger one, and with one the candidates
are the same images that a larger unfiltered set holds.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from fedsim.config import Experiment
from fedsim.data.from_config import source_identity
from fedsim.errors import ConfigError
from fedsim.inputs.draw_images import BATCH, Draw, Drawer, DrawnImages, Recipe
from fedsim.models.clip import Clip, load_clip
from fedsim.models.image_arrays import fit_images
from fedsim.models.image_folder import ImageFolder, is_image_folder
from fedsim.models.random_views import averaged_features, random_view
from fedsim.seeding import derive, numpy_rng
from fedsim.storage.array_cache import Arrays, Parts, address, shared_arrays

_FORMAT = 3
"""Raised whenever what `synthetic_set` stores changes; older entries are then not found."""
_ENCODE = 256
"""Images, or views, that are encoded at once."""


def synthetic_key(config: Experiment, meta: dict[str, Any]) -> dict[str, Any]:
    """Everything that a synthetic set depends on; settings without effect are left out."""
    models, settings = config.models, config.synthetic
    return {
        "kind": "synthetic",
        "format": _FORMAT,
        "classnames": meta["classnames"],
        "templates": meta["templates"],
        "text": meta["text"],
        "images_per_class": config.cache.images_per_class,
        "seed": config.train_seed,
        "batch": BATCH,
        "steps": models.generator_steps,
        "guidance": models.generator_guidance,
        "generator": source_identity(models.generator),
        "clip": source_identity(models.clip),
        "prompts": prompt_templates(config, meta),
        "filter": settings.filter,
        "drawn": settings.drawn_per_class(config.cache.images_per_class),
        "views": settings.augment_views,
        "flip": settings.augment_views > 1 and settings.augment_flip,
    }


def prompt_templates(config: Experiment, meta: dict[str, Any]) -> list[str]:
    """What is asked for, taken in turn: `synthetic.prompts`, or the data's first template."""
    return list(config.synthetic.prompts or meta["templates"][:1])


def synthetic_set(
    config: Experiment,
    meta: dict[str, Any],
    text: np.ndarray | None,
    device: torch.device,
    draw: Draw | None = None,
) -> tuple[Arrays, str]:
    """The synthetic set, from the store or made now, and its name.

    Args:
        config: The resolved experiment.
        meta: What is known of the data (`TaskData.meta`).
        text: `(num_classes, d)` class embeddings, which a filter judges by.
        device: Where the encoder runs.
        draw: Where images are drawn; by default here, on `device`.

    Returns:
        `images` uint8 `(n, H, W, 3)`; `inputs` float32 `(n, d)`, one key per image; `features`
        float32 `(n, d)` of the images as they are (equal to `inputs` with one view); `labels`;
        `index`, their numbers among the candidates of their class; `drawn_agreement`
        `(num_classes,)`, the share of all candidates that the encoder reads as their class;
        `draw_s`, the time that drawing them took. K images per class, sorted by class; a filter's
        choice comes best first. Without an encoder there are neither `inputs` nor `features`, and
        agreement is NaN.

    Raises:
        ConfigError: No generator, or a filter without class embeddings.
        ModelError: The generator cannot be loaded, or a folder of images lacks some.
    """
    models = config.models
    if models.generator is None:
        raise ConfigError(f"method {config.method!r} needs models.generator")
    if text is None and config.synthetic.filter != "none":
        raise ConfigError("synthetic.filter compares with class embeddings: the data has none")
    key = synthetic_key(config, meta)

    def make() -> Arrays:
        begun = time.perf_counter()
        source = _source(config, meta, key, draw or Drawer(str(device)))
        took = {"draw_s": np.array([time.perf_counter() - begun])}
        num_classes = len(meta["classnames"])
        if models.clip is None:
            return _unjudged(config, num_classes, source) | took
        clip = load_clip(models.clip, str(device))
        return _chosen(config, num_classes, text, source, clip) | took

    return shared_arrays(key, make), address(key)


class _Source(Protocol):
    """The candidates, by row: all of class 0, then all of class 1, ..."""

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        """The images at `rows`, in their own size."""

    def pixels(self, rows: np.ndarray) -> np.ndarray | None:
        """The same as uint8 `(n, H, W, 3)`; None where sizes may differ."""


class _FolderImages:
    """Candidates from a folder of images made elsewhere."""

    def __init__(self, folder: ImageFolder, drawn: int) -> None:
        self._folder, self._drawn = folder, drawn

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        return [self._folder.image(*divmod(int(row), self._drawn)) for row in rows]

    def pixels(self, rows: np.ndarray) -> np.ndarray | None:
        return None


def _source(config: Experiment, meta: dict[str, Any], key: dict[str, Any], draw: Draw) -> _Source:
    models, names = config.models, meta["classnames"]
    drawn = config.synthetic.drawn_per_class(config.cache.images_per_class)
    assert models.generator is not None
    if is_image_folder(models.generator):
        return _FolderImages(ImageFolder(models.generator, names, drawn), drawn)
    templates, rows = prompt_templates(config, meta), range(len(names) * drawn)
    places = [divmod(row, drawn) for row in rows]
    return DrawnImages(
        Parts(key),
        Recipe(models.generator, models.generator_steps, models.generator_guidance),
        [templates[i % len(templates)].replace("{}", _words(names[c])) for c, i in places],
        [derive(config.train_seed, "synthetic", c, i) for c, i in places],
        draw,
    )


def _chosen(
    config: Experiment, num_classes: int, text: np.ndarray | None, source: _Source, clip: Clip
) -> Arrays:
    """Encode all candidates, keep K of each class, make their keys."""
    settings, k = config.synthetic, config.cache.images_per_class
    drawn = settings.drawn_per_class(k)
    labels = np.repeat(np.arange(num_classes), drawn)
    features = np.concatenate(
        [
            clip.encode_images(clip.prepare(source.images(rows))).cpu().numpy()
            for rows in _chunks(np.arange(len(labels)), _ENCODE)
        ]
    )
    agreement = np.full(num_classes, np.nan)
    rows = np.arange(len(labels))
    if text is not None:
        similarity = features.astype(np.float64) @ np.asarray(text, dtype=np.float64).T
        agrees = similarity.argmax(1) == labels
        agreement = agrees.reshape(num_classes, drawn).mean(1)
        if settings.filter != "none":
            rows = choose(similarity[rows, labels], agrees, labels, k, settings.filter)
    keys = features[rows]
    if settings.augment_views > 1:
        keys = _keys_of_views(config, source, clip, rows, drawn)
    pixels = source.pixels(rows)
    if pixels is None:
        chunks = [clip.prepare(source.images(part)) for part in _chunks(rows, _ENCODE)]
        pixels = torch.cat(chunks).permute(0, 2, 3, 1).numpy()
    return {
        "images": pixels,
        "inputs": keys,
        "features": features[rows],
        "labels": labels[rows].astype(np.int64),
        "index": (rows % drawn).astype(np.int64),
        "drawn_agreement": agreement,
    }


def _unjudged(config: Experiment, num_classes: int, source: _Source) -> Arrays:
    """K images of each class, as they come."""
    k = config.cache.images_per_class
    rows = np.arange(num_classes * k)
    pixels = source.pixels(rows)
    if pixels is None:  # all as large as the smallest
        parts = _chunks(rows, _ENCODE)
        side = min(min(image.size) for part in parts for image in source.images(part))
        found = (np.asarray(image) for part in parts for image in source.images(part))
        pixels = fit_images(found, (3, side, side)).transpose(0, 2, 3, 1)
    return {
        "images": pixels,
        "labels": rows // k,
        "index": rows % k,
        "drawn_agreement": np.full(num_classes, np.nan),
    }


def choose(
    similarity: np.ndarray, agrees: np.ndarray, labels: np.ndarray, k: int, filter: str
) -> np.ndarray:
    """The rows of the k best candidates of each class, best first; ties go to the earlier one.

    Args:
        similarity: `(n,)` cosine of each candidate to the embedding of its own class.
        agrees: `(n,)` bool, whether the encoder reads it as its class.
        labels: `(n,)`.
        k: How many are kept of each class.
        filter: `similarity`, the most similar; `agreement`, those that agree, then the most
            similar of the others.

    >>> agrees = np.array([True, False, True])
    >>> choose(np.array([0.2, 0.3, 0.1]), agrees, np.zeros(3), 2, "similarity").tolist()
    [1, 0]
    >>> choose(np.array([0.2, 0.3, 0.1]), agrees, np.zeros(3), 2, "agreement").tolist()
    [0, 2]
    """
    first = ~agrees if filter == "agreement" else np.zeros(len(labels), dtype=bool)
    order = np.lexsort((np.arange(len(labels)), -similarity, first))
    kept = [order[labels[order] == label][:k] for label in np.unique(labels)]
    return np.concatenate(kept)


def _keys_of_views(
    config: Experiment, source: _Source, clip: Clip, rows: np.ndarray, drawn: int
) -> np.ndarray:
    """`(n, d)`: the mean feature of the views of each image."""
    settings, seed = config.synthetic, config.train_seed
    found = []
    for part in _chunks(rows, max(1, _ENCODE // settings.augment_views)):
        views = [
            [
                random_view(
                    image,
                    clip.image_size,
                    numpy_rng(seed, "synthetic_view", int(row // drawn), int(row % drawn), view),
                    settings.augment_flip,
                )
                for view in range(settings.augment_views)
            ]
            for row, image in zip(part, source.images(part), strict=True)
        ]
        found.append(averaged_features(clip, views).cpu().numpy())
    return np.concatenate(found)


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _words(classname: str) -> str:
    return classname.replace("_", " ")
