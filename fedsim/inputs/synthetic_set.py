"""The server's class-balanced synthetic set: drawn or read, chosen, encoded, stored.

Image i of class c is drawn from prompt i (templates taken in turn) and the seed
`derive(seed, "synthetic", c, i)`. Neither depends on how many images are asked for or on the
filter: without a filter a smaller set is the beginning of a larger one, and with one the candidates
are the same images that a larger unfiltered set holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedsim.config.sections import ModelsConfig, SyntheticConfig
from fedsim.data.from_config import source_identity
from fedsim.errors import ConfigError
from fedsim.inputs.draw_images import BATCH, Draw, Drawer, DrawnImages, Recipe
from fedsim.inputs.encode import chunks
from fedsim.inputs.run_inputs import RunInputs
from fedsim.models.clip import Clip, load_clip
from fedsim.models.generator import TINY_DIFFUSION, load_generator
from fedsim.models.image_arrays import fit_images
from fedsim.models.image_folder import ImageFolder, is_image_folder
from fedsim.models.random_views import averaged_features, random_view
from fedsim.seeding import derive, numpy_rng
from fedsim.storage.array_cache import Arrays, InputStep, is_stored

_FORMAT = 3
"""Raised whenever the stored arrays change; older entries are then not found."""
_ENCODE = 256
"""Images, or views, that are encoded at once."""
_INSTEAD = "for precomputed features choose cache.init: text, public_shots or random"


def synthetic_step(
    models: ModelsConfig,
    settings: SyntheticConfig,
    images_per_class: int,
    seed: int,
    meta: dict[str, Any],
    text: np.ndarray | None,
    device: str = "cpu",
    draw: Draw | None = None,
) -> InputStep:
    """The synthetic set; its key leaves out settings without effect.

    Args:
        models: Encoder and generator.
        settings: How images are asked for and chosen.
        images_per_class: K.
        seed: Of the images, an experiment's `train_seed`.
        meta: What is known of the data (`RunInputs.meta`).
        text: `(num_classes, d)` class embeddings, which a filter judges by.
        device: Where the encoder runs.
        draw: Where images are drawn; by default here, on `device`.

    Returns:
        A step to `images` uint8 `(n, H, W, 3)`; `inputs` float32 `(n, d)`, one key per image;
        `features` float32 `(n, d)` of the images as they are (equal to `inputs` with one view);
        `labels`; `index`, their numbers among the candidates of their class; `drawn_agreement`
        `(num_classes,)`, the share of all candidates that the encoder reads as their class;
        `draw_s`, the time that drawing them took. K images per class, sorted by class; a filter's
        choice comes best first. Without an encoder there are neither `inputs` nor `features`, and
        agreement is NaN. The step raises `ConfigError` without a generator, or for a filter without
        class embeddings, and `ModelError` if the generator cannot be loaded, or if a folder of
        images lacks some.
    """
    names, drawn = meta["classnames"], settings.drawn_per_class(images_per_class)
    words = [name.replace("_", " ") for name in names]
    prompts = list(settings.prompts or meta["templates"][:1])
    key = {
        "kind": "synthetic",
        "format": _FORMAT,
        "classnames": names,
        "templates": meta["templates"],
        "text": meta["text"],
        "images_per_class": images_per_class,
        "seed": seed,
        "batch": BATCH,
        "steps": models.generator_steps,
        "guidance": models.generator_guidance,
        "generator": source_identity(models.generator),
        "clip": source_identity(models.clip),
        "prompts": prompts,
        "filter": settings.filter,
        "drawn": drawn,
        "views": settings.augment_views,
        "flip": settings.augment_views > 1 and settings.augment_flip,
    }

    def make() -> Arrays:
        if models.generator is None:
            raise ConfigError("a generated set needs models.generator")
        if text is None and settings.filter != "none":
            raise ConfigError("synthetic.filter compares with class embeddings: the data has none")
        begun = time.perf_counter()
        candidates: _Candidates
        if is_image_folder(models.generator):
            candidates = _FolderImages(models.generator, names, drawn)
        else:
            recipe = Recipe(models.generator, models.generator_steps, models.generator_guidance)
            places = [divmod(row, drawn) for row in range(len(names) * drawn)]
            candidates = DrawnImages(
                key,
                recipe,
                [prompts[i % len(prompts)].replace("{}", words[c]) for c, i in places],
                [derive(seed, "synthetic", c, i) for c, i in places],
                draw or Drawer(device),
            )
        took = {"draw_s": np.array([time.perf_counter() - begun])}
        clip = None if models.clip is None else load_clip(models.clip, device)
        asked = settings, images_per_class, seed, text, clip
        return _chosen(candidates, len(names), *asked) | took

    return InputStep(key, make)


def check_models(inputs: str, models: ModelsConfig, filter: str, method: str) -> None:
    """Refuse a generated set that nothing can draw, encode or judge.

    Raises:
        ConfigError: Encoder or generator is missing.
    """
    where = f"methods.{method}"
    if inputs != "images" and None in (models.clip, models.generator):
        raise ConfigError(
            f"{where}: a generated set needs models.clip and models.generator; {_INSTEAD}"
        )
    if models.generator is None:
        raise ConfigError(f"{where}: a generated set needs models.generator")
    if models.clip is None and filter != "none":
        raise ConfigError(
            f"{where}: synthetic.filter {filter!r} lets models.clip judge the images, which is "
            f"null: name an encoder, or set synthetic.filter to none"
        )


def check_generator(
    made: InputStep,
    models: ModelsConfig,
    data: RunInputs,
    method: str,
    device: str,
    loaded: set[str],
) -> None:
    """Load the models that draw and encode a set that is not stored, to report a wrong name now.

    Args:
        made: The step to the set.
        models: Encoder and generator.
        data: The run's arrays.
        method: What errors call the run's method.
        device: Where they are loaded.
        loaded: Models that are not loaded again; newly loaded ones are added.

    Raises:
        ConfigError: The data's features are not those of the encoder.
        ModelError: Encoder or generator cannot be loaded, or a folder of images lacks some.
    """
    clip, generator, meta = models.clip, models.generator, data.meta
    assert generator is not None
    if clip is not None and meta["visual_bytes"] == 0 and clip not in loaded:  # data of features
        width = load_clip(clip, device).embed_dim
        if width != meta["embed_dim"]:
            raise ConfigError(
                f"methods.{method}: generated images need the encoder of "
                f"{data.source.settings.name!r}, whose features have {meta['embed_dim']} numbers; "
                f"models.clip {clip!r} makes {width}; {_INSTEAD}"
            )
        loaded.add(clip)
    if is_image_folder(generator):
        ImageFolder(generator, meta["classnames"], made.key["drawn"])
    elif generator not in (TINY_DIFFUSION, *loaded) and not is_stored(made.key):
        load_generator(generator, device)
        loaded.add(generator)


class _FolderImages(ImageFolder):
    """Candidates from a folder of images made elsewhere, with the methods of `DrawnImages`."""

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        return [self.image(*divmod(int(row), self.per_class)) for row in rows]

    def pixels(self, rows: np.ndarray) -> None:
        """None: sizes may differ."""


_Candidates = DrawnImages | _FolderImages
"""By row: all candidates of class 0, then all of class 1, ..."""


def _chosen(
    candidates: _Candidates,
    num_classes: int,
    settings: SyntheticConfig,
    k: int,
    seed: int,
    text: np.ndarray | None,
    clip: Clip | None,
) -> Arrays:
    """Keep K candidates of each class; with an encoder, judge them and make their keys."""
    drawn = settings.drawn_per_class(k)
    rows = np.arange(num_classes * drawn)
    labels, agreement, found = rows // drawn, np.full(num_classes, np.nan), Arrays()
    if clip is not None:
        encoded = [clip.encode_images(part).cpu() for part in _prepared(candidates, rows, clip)]
        features = torch.cat(encoded).numpy()
        if text is not None:
            similarity = features.astype(np.float64) @ np.asarray(text, dtype=np.float64).T
            agrees = similarity.argmax(1) == labels
            agreement = agrees.reshape(num_classes, drawn).mean(1)
            if settings.filter != "none":
                rows = choose(similarity[rows, labels], agrees, labels, k, settings.filter)
        found = {"inputs": features[rows], "features": features[rows]}
        if settings.augment_views > 1:
            found["inputs"] = _keys_of_views(candidates, rows, drawn, settings, seed, clip)
    pixels = candidates.pixels(rows)
    return found | {
        "images": _one_size(candidates, rows, clip) if pixels is None else pixels,
        "labels": labels[rows],
        "index": rows % drawn,
        "drawn_agreement": agreement,
    }


def _prepared(candidates: _Candidates, rows: np.ndarray, clip: Clip) -> Iterator[torch.Tensor]:
    """Candidates as the encoder takes them, a few at a time."""
    return (clip.prepare(candidates.images(part)) for part in chunks(rows, _ENCODE))


def _one_size(candidates: _Candidates, rows: np.ndarray, clip: Clip | None) -> np.ndarray:
    """Pixels `(n, h, h, 3)` as the encoder takes them, or all as large as the smallest."""
    if clip is not None:
        return torch.cat([*_prepared(candidates, rows, clip)]).permute(0, 2, 3, 1).numpy()
    parts = chunks(rows, _ENCODE)
    side = min(min(image.size) for part in parts for image in candidates.images(part))
    found = (np.asarray(image) for part in parts for image in candidates.images(part))
    return fit_images(found, (3, side, side)).transpose(0, 2, 3, 1)


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
    candidates: _Candidates,
    rows: np.ndarray,
    drawn: int,
    settings: SyntheticConfig,
    seed: int,
    clip: Clip,
) -> np.ndarray:
    """`(n, d)`: the mean feature of the views of each image."""
    size, flip, count = clip.image_size, settings.augment_flip, settings.augment_views

    def views(row: int, image: Image.Image) -> list[Image.Image]:
        place = divmod(row, drawn)
        rngs = (numpy_rng(seed, "synthetic_view", *place, view) for view in range(count))
        return [random_view(image, size, rng, flip) for rng in rngs]

    found = []
    for part in chunks(rows, max(1, _ENCODE // count)):
        images = zip(part.tolist(), candidates.images(part), strict=True)
        found.append(averaged_features(clip, [views(row, image) for row, image in images]).cpu())
    return torch.cat(found).numpy()
