"""Checks that need torch, made before any run begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from fedsim.config import Experiment
from fedsim.data.from_config import DataSource, draw_seed
from fedsim.errors import ConfigError
from fedsim.inputs.encode import Extract, Progress, extract_here
from fedsim.inputs.measured_sets import check_measured
from fedsim.inputs.prepare import InputSteps
from fedsim.inputs.run_inputs import RunInputs
from fedsim.inputs.synthetic_set import check_generator, check_models
from fedsim.inputs.task import check_text, make_task
from fedsim.methods import build_method, check_options, method_class
from fedsim.methods.base import Method
from fedsim.process import settle_process
from fedsim.storage.array_cache import arrays_of


def preflight(
    experiments: Sequence[Experiment],
    device: str = "cpu",
    extract: Extract = extract_here,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Refuse methods, options, data and encoders that cannot work together, all at once.

    Encodes the images on the way, once for all runs that share data and encoder.

    Args:
        experiments: What is to be run.
        device: Where encoder and generator are loaded.
        extract: Where images are encoded.
        progress: Called with the number of encoded images.

    Returns:
        Keys of the entries that are now in the node's store for clients, and to measure sets.

    Raises:
        ConfigError: Listing every problem.
        DataError: If the data cannot be read.
        ModelError: If encoder or generator cannot be loaded.
    """
    problems: dict[str, None] = {}
    prepared: dict[str, RunInputs] = {}
    keys: dict[str, dict[str, Any]] = {}
    loaded: set[str] = set()
    source_of = cache(DataSource)  # read once for all runs
    for config in experiments:
        settings, models, name = config.for_method(), config.models, config.method
        try:
            cls = _method(config)
            check_options(settings, cls)
            _check_averaging(config, cls)
            _check_population(config, cls)
            generates = cls.needs_synthetic(settings)
            if generates:
                check_models(cls.inputs, models, config.synthetic.filter, name)
            source = source_of(config.data, draw_seed(config.data, config.partition_seed))
            steps = InputSteps(config, cls, device, extract, progress, source)
            entries = repr([step.address for step in steps.real])
            settle_process(config.engine.threads)
            if entries not in prepared:
                prepared[entries] = steps.inputs()
            data = prepared[entries]
            task = make_task(settings, data, cls, torch.device(device), server=False)
            check_text(task)
            build_method(settings, task).check_task()
            if steps.measured:
                check_measured(models.clip, source, name)
                arrays_of(steps.measured)
            keys |= {step.address: step.key for step in (*steps.real, *steps.measured)}
            if generates:
                check_generator(steps.synthetic(data)[0], models, data, name, device, loaded)
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ConfigError(list(problems))
    return list(keys.values())


def _method(config: Experiment) -> type[Method]:
    try:
        return method_class(config.use)
    except ConfigError as error:
        raise ConfigError([f"methods.{config.method}: {p}" for p in error.problems]) from error


def _check_population(config: Experiment, cls: type[Method]) -> None:
    """Refuse a model for each of any number of clients."""
    if cls.personal and config.partition.shares_samples:
        raise ConfigError(
            f"methods.{config.method}: {config.use} trains a model for every client and no global "
            f"one, and partition.scheme {config.partition.scheme!r} has any number of clients: "
            f"choose another scheme"
        )


def _check_averaging(config: Experiment, cls: type[Method]) -> None:
    """Refuse settings of the server's step and of the wire that the method does not use."""
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
