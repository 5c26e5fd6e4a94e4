"""Checks that need torch, made before any run begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsim.config import Experiment
from fedsim.data.configured import draw_seed
from fedsim.engine.prepare import prepare
from fedsim.errors import ConfigError
from fedsim.methods import check_options, method_class


def preflight(experiments: Sequence[Experiment], device: str = "cpu") -> None:
    """Refuse methods, options, data and encoders that cannot work together, all at once.

    Encodes the images on the way, once for all runs that share data and encoder.

    Raises:
        ConfigError: Listing every problem.
        DataError: If the data cannot be read.
        ModelError: If the encoder cannot be loaded.
    """
    problems: dict[str, None] = {}
    prepared: set[str] = set()
    for config in experiments:
        try:
            cls = method_class(config.use)
            check_options(config, cls)
            models = config.models
            if cls.needs_synthetic(config) and None in (models.clip, models.generator):
                raise ConfigError(
                    f"methods.{config.method}: a generated set needs models.clip and "
                    f"models.generator; for precomputed features choose cache.init: text, "
                    f"public_shots or random"
                )
            key = repr((cls.inputs, config.data, models.clip, draw_seed(config)))
            if key not in prepared:
                data = prepare(config, cls, torch.device(device), synthetic=False)
                if "text_features" not in data.arrays and models.clip is None:
                    raise ConfigError(
                        f"methods.{config.method}: {config.data.name!r} has no text features "
                        f"and models.clip is null: add text features to the file"
                    )
                prepared.add(key)
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ConfigError(list(problems))
