"""The in-process backend: the reference for every other, and the one to debug with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config import Experiment
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.host import ClientHost, Done, Work
from fedsim.engine.round import Federation
from fedsim.engine.sinks import open_sinks
from fedsim.inputs.draw_images import Drawer, Job, Recipe
from fedsim.params import Params

RowListener = Callable[[dict[str, Any]], None]
"""Called with every committed row of `rounds`."""


class LocalPool:
    """All simulated clients in this process."""

    num_actors = 0

    def __init__(self, config: Experiment, device: str = "cpu") -> None:
        self._config, self._device = config, device
        self._host: ClientHost | None = None

    def train(self, work: Work, message: Params) -> Iterator[Done]:
        """All groups, one after the other."""
        if self._host is None:
            self._host = ClientHost(self._config, self._device)
        yield self._host.train(work, message)

    def draw(self, recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, np.ndarray]]:
        """Images, drawn in this process."""
        return Drawer(self._device)(recipe, jobs)

    def take_events(self) -> list[tuple[str, str]]:
        """None: this process is the pool."""
        return []


def run_local(
    config: Experiment,
    study_dir: Path,
    watch: RowListener = lambda row: None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Run one experiment in this process to its end, or on from its last checkpoint.

    `about` are more columns of the run's row in `runs`.
    """
    checkpoints = CheckpointFolder(study_dir, config.run_id)
    sinks = open_sinks(study_dir, config.run_id)
    drive(Federation(config, sinks, checkpoints, LocalPool(config), about=about), watch)


def drive(federation: Federation, watch: RowListener) -> None:
    """Step a federation to its end. If something ends it early, its tables say so."""
    try:
        watch(federation.setup())
        while not federation.finished:
            watch(federation.step())
    except KeyboardInterrupt:
        federation.abort("interrupted")
        raise
    except BaseException as error:
        federation.abort("failed", error)
        raise
    federation.finish()
