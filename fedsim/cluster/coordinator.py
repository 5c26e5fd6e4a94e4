"""The coordinator: one run's round loop, its client actors, its tables and its checkpoints.

The same class is an actor of its own for `fedsim run`, and lives inside a Tune trial in a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup

from fedsim.cluster.client import device_of_actor
from fedsim.cluster.placement import Placement
from fedsim.cluster.pool import ActorPool
from fedsim.cluster.session import nodes
from fedsim.config import Experiment
from fedsim.errors import ExecutionError
from fedsim.storage.remote import local_folder

if TYPE_CHECKING:
    from fedsim.engine.round import Federation


StepReport = dict[str, Any]
"""The report of each step of a run to the driver: the last committed `round`, its `accuracy`
on the served split, and `finished`, whether it was the last."""


class Coordinator:
    """Runs experiments one after the other on the same warm client actors."""

    def __init__(self, placement: Placement, group: PlacementGroup) -> None:
        self.pool = ActorPool(placement, group)  # its actors import torch while this one does
        self.device = device_of_actor(placement.gpus_coordinator)
        self._federation: Federation | None = None

    def check(self, config: Experiment) -> None:
        """Check an experiment that encodes no images, instead of `fedsim.cluster.remote_preflight`.

        So one process less loads torch, which takes seconds and memory.
        """
        from fedsim.inputs.preflight import preflight
        from fedsim.process import give_freed_memory_back

        config.enter()
        preflight([config], self.device)
        give_freed_memory_back()

    def begin(self, config: Experiment, study_dir: str, command: str | None = None) -> StepReport:
        """Set up a run in a study's folder or URL, or resume it from its last checkpoint."""
        from fedsim.engine.checkpoint import CheckpointFolder
        from fedsim.engine.round import Federation
        from fedsim.engine.sinks import open_sinks

        config.enter()
        self.pool.config = config
        folder = local_folder(study_dir)
        about = {"command": command, "ray_version": ray.__version__, "num_nodes": len(nodes())}
        self._federation = Federation(
            config,
            open_sinks(folder, config.run_id),
            CheckpointFolder(folder, config.run_id),
            self.pool,
            self.pool,  # server-side work runs on the clients' actors: they are idle, and hold GPUs
            self.device,
            about,
        )
        return self._advance(self._federation.setup)

    def step(self) -> StepReport:
        """One round."""
        if self._federation is None:
            raise ExecutionError("step before begin")
        return self._advance(self._federation.step)

    def stop(self) -> None:
        """End the run where it is, unless it has ended by itself."""
        federation, self._federation = self._federation, None
        if federation is not None:
            federation.abort("stopped")

    def close(self) -> None:
        """End the client actors."""
        self.pool.close()

    def _advance(self, action: Callable[[], dict[str, Any]]) -> StepReport:
        federation = self._federation
        assert federation is not None
        try:
            row = action()
        except Exception as error:
            self._federation = None
            federation.abort("failed", error)
            raise
        if federation.finished:
            self._federation = None
            federation.finish()
        report = {"round": row["round"], "accuracy": row["accuracy"]}
        return report | {"finished": federation.finished}
