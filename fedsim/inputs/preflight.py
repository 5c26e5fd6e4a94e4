"""Checks that need torch, made before any run begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedsim.config import Experiment
from fedsim.data.from_config import draw_seed, read_dataset
from fedsim.errors import ConfigError
from fedsim.inputs.augmented_views import views_key, wants_views
from fedsim.inputs.encode import Extract, Progress, extract_here
from fedsim.inputs.noisy_clients import spoilt_key
from fedsim.inputs.prepare import MEASURED_LIKE, TaskData, measures_sets, prepare
from fedsim.inputs.synthetic_set import synthetic_key
from fedsim.inputs.task import class_embeddings, make_task
from fedsim.methods import build_method, check_options, method_class
from fedsim.methods.base import Method
from fedsim.models.clip import load_clip
from fedsim.models.generator import TINY_DIFFUSION, load_generator
from fedsim.models.image_folder import ImageFolder, is_image_folder
from fedsim.process import settle_process
from fedsim.storage.array_cache import is_stored


def preflight(
    experiments: Sequence[Experiment],
    device: str = "cpu",
    extract: Extract = extract_here,
    progress: Progress | None = None,
) -> None:
    """Refuse methods, options, data and encoders that cannot work together, all at once.

    Encodes the images on the way, once for all runs that share data and encoder.

    Args:
        experiments: What is to be run.
        device: Where encoder and generator are loaded.
        extract: Where images are encoded.
        progress: Hears how many are.

    Raises:
        ConfigError: Listing every problem.
        DataError: If the data cannot be read.
        ModelError: If encoder or generator cannot be loaded.
    """
    problems: dict[str, None] = {}
    prepared: dict[str, TaskData] = {}
    loaded: set[str] = set()
    for config in experiments:
        try:
            cls = _method(config)
            check_options(config.for_method(), cls)
            _check_averaging(config, cls)
            _check_population(config, cls)
            clip = config.models.clip
            if cls.needs_synthetic(config.for_method()):
                _check_models(config, cls)
            beside = _noise(config), _views(config, cls)
            seed = draw_seed(config.data, config.partition_seed)
            key = repr((cls.inputs, config.data, clip, seed, beside))
            if key not in prepared:
                settle_process(config.engine.threads)
                data = prepare(
                    config,
                    cls,
                    torch.device(device),
                    synthetic=False,
                    extract=extract,
                    progress=progress,
                )
                if cls.inputs != "images" and class_embeddings(config, data) is None:
                    raise ConfigError(
                        f"methods.{config.method}: the features of {config.data.name!r} come "
                        f"without text features: add text_features (num_classes, d) to the file, "
                        f"or set data.prototype_shots"
                    )
                prepared[key] = data
            task = make_task(config, prepared[key], cls, torch.device(device), server=False)
            build_method(task.config, task).check_task()
            if measures_sets(config, cls):
                _check_measured(config)
                where = torch.device(device)
                prepare(config, MEASURED_LIKE, where, False, extract=extract, progress=progress)
            if cls.needs_synthetic(config.for_method()):
                _check_generated(config, prepared[key].meta, device, loaded)
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ConfigError(list(problems))


_INSTEAD = "for precomputed features choose cache.init: text, public_shots or random"


def _noise(config: Experiment) -> Any:
    """What spoilt arrays depend on, beside the clean ones."""
    return spoilt_key(config, "") if config.noise.active else None


def _views(config: Experiment, cls: type[Method]) -> Any:
    """What encoded views depend on, beside the images."""
    return views_key(config, "") if wants_views(config, cls) else None


def _method(config: Experiment) -> type[Method]:
    try:
        return method_class(config.use)
    except ConfigError as error:
        raise ConfigError([f"methods.{config.method}: {p}" for p in error.problems]) from error


def _check_models(config: Experiment, cls: type[Method]) -> None:
    """Refuse a generated set that nothing can draw, encode or judge."""
    models, where = config.models, f"methods.{config.method}"
    if cls.inputs != "images" and None in (models.clip, models.generator):
        raise ConfigError(
            f"{where}: a generated set needs models.clip and models.generator; {_INSTEAD}"
        )
    if models.generator is None:
        raise ConfigError(f"{where}: a generated set needs models.generator")
    if models.clip is None and config.synthetic.filter != "none":
        raise ConfigError(
            f"{where}: synthetic.filter {config.synthetic.filter!r} lets models.clip judge the "
            f"images, which is null: name an encoder, or set synthetic.filter to none"
        )


def _check_measured(config: Experiment) -> None:
    """Refuse to measure images without an encoder, or without images to compare with."""
    where = f"methods.{config.method}: evaluation.set_quality"
    if config.models.clip is None:
        raise ConfigError(
            f"{where} measures images with models.clip: name one, such as tiny-clip or "
            "ViT-B-32/openai"
        )
    if read_dataset(config.data, config.partition_seed).train.features is not None:
        raise ConfigError(
            f"{where} compares images with the data's, but {config.data.name!r} holds "
            "precomputed features: leave it out"
        )


def _check_population(config: Experiment, cls: type[Method]) -> None:
    """Refuse a model for each of any number of clients."""
    if cls.personal and config.partition.shares_samples:
        raise ConfigError(
            f"methods.{config.method}: {config.use} has no global model but one for every client, "
            f"which partition.scheme {config.partition.scheme!r} is not for: choose another scheme"
        )


def _check_averaging(config: Experiment, cls: type[Method]) -> None:
    """Refuse settings of the server's step and of the wire that the method has no use for."""
    server, wire = config.server, config.wire
    given = {
        "server.optimizer": server.optimizer != "mean",
        "server.lr": server.lr != 1,
        "server.class_weighting": server.class_weighting > 0,
        "wire.compression": wire.compression != "none",
    }
    asked = [name for name, is_set in given.items() if is_set]
    where = f"methods.{config.method}"
    if asked and not (cls.averages and cls.uses_clients and cls.reduction == "sum"):
        raise ConfigError(
            f"{where}: {', '.join(asked)} {'is' if len(asked) == 1 else 'are'} for methods whose "
            f"server averages steps of the clients, which {config.use} does not: leave out"
        )
    if server.class_weighting and cls.class_rows is Method.class_rows:
        raise ConfigError(
            f"{where}: server.class_weighting needs parameters with a row per class, which "
            f"{config.use} has not: leave it at 0"
        )


def _check_generated(
    config: Experiment, meta: dict[str, Any], device: str, loaded: set[str]
) -> None:
    """Load what the server will generate images with, unless they are stored already.

    A name that is wrong, or weights that are not there, are told before any run begins.
    """
    clip, generator = config.models.clip, config.models.generator
    assert generator is not None
    if clip is not None and meta["visual_bytes"] == 0 and clip not in loaded:  # data of features
        width = load_clip(clip, device).embed_dim
        if width != meta["embed_dim"]:
            raise ConfigError(
                f"methods.{config.method}: generated images need the encoder of "
                f"{config.data.name!r}, whose features have {meta['embed_dim']} numbers; "
                f"models.clip {clip!r} makes {width}; {_INSTEAD}"
            )
        loaded.add(clip)
    if is_image_folder(generator):
        drawn = config.synthetic.drawn_per_class(config.cache.images_per_class)
        ImageFolder(generator, meta["classnames"], drawn)
        return
    if generator in (TINY_DIFFUSION, *loaded) or is_stored(synthetic_key(config, meta)):
        return
    load_generator(generator, device)
    loaded.add(generator)
