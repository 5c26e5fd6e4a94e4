"""The coordinator: one run's round loop, its client actors, its tables and its checkpoints.

The same class is an actor of its own for `fedsim run`, and lives inside a Tune trial in a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup

from fedsim.cluster.client import device_of_actor
from fedsim.cluster.placement import Placement
from fedsim.cluster.pool import ActorPool
from fedsim.config import Experiment
from fedsim.errors import ExecutionError

if TYPE_CHECKING:
    from fedsim.engine.round import Federation

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """What the driver hears after each step of a run.

    Attributes:
        run_id: The run.
        round: Last committed round.
        accuracy: On the served split.
        finished: Whether that was the last.
    """

    run_id: str
    round: int
    accuracy: float
    finished: bool

    def as_row(self) -> dict[str, Any]:
        """What the driver's display needs."""
        return {"round": self.round, "accuracy": self.accuracy, "finished": self.finished}


class RayExecutor:
    """Server-side work of a round as Ray tasks, while the client actors wait.

    The tasks ask for no CPUs, since the waiting clients hold them; so they are counted here.

    Args:
        at_once: Tasks, and so processes, at the same time.
        gpus: GPU fraction of one task.
    """

    def __init__(self, at_once: int, gpus: float = 0.0) -> None:
        self._at_once, self._gpus = at_once, gpus

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`[function(item) for item in items]`, in parallel; order is kept."""
        task = ray.remote(function).options(num_cpus=0, num_gpus=self._gpus)
        futures, running = [], list[Any]()
        for item in items:
            if len(running) == self._at_once:
                _, running = ray.wait(running)
            futures.append(task.remote(item))
            running.append(futures[-1])
        return ray.get(futures)


class Coordinator:
    """Runs experiments one after the other on the same warm client actors.

    Args:
        placement: How many client actors, and what they hold.
        group: The placement group they live in.
    """

    def __init__(self, placement: Placement, group: PlacementGroup) -> None:
        self.pool = ActorPool(placement, group)  # its actors import torch while this one does
        self.device = device_of_actor(placement.gpus_coordinator)
        self.executor = RayExecutor(placement.num_actors)
        self._federation: Federation | None = None

    def begin(self, config: Experiment, study_dir: str, command: str | None = None) -> Progress:
        """Set up a run, or take it up from its last checkpoint; round 0 is committed."""
        from fedsim.engine.checkpoint import CheckpointFolder
        from fedsim.engine.round import Federation
        from fedsim.results.writer import TableWriter

        config.enter()
        self.pool.config = config
        about = {"command": command, "ray_version": ray.__version__, "num_nodes": len(ray.nodes())}
        self._federation = Federation(
            config,
            TableWriter(Path(study_dir), config.run_id),
            CheckpointFolder(Path(study_dir), config.run_id),
            self.pool,
            self.executor,
            self.device,
            about,
        )
        return self._advance(self._federation.setup)

    def step(self) -> Progress:
        """One round."""
        if self._federation is None:
            raise ExecutionError("step before begin")
        return self._advance(self._federation.step)

    def where(self) -> list[dict[str, Any]]:
        """Process, node and accelerators of the client actors."""
        return self.pool.where()

    def close(self) -> None:
        """End the client actors."""
        self.pool.close()

    def _advance(self, action: Callable[[], dict[str, Any]]) -> Progress:
        federation = self._federation
        assert federation is not None
        try:
            row = action()
        except Exception as error:
            federation.abort("failed", error)
            raise
        if federation.finished:
            federation.finish()
        run_id = federation.config.run_id
        return Progress(run_id, row["round"], row["accuracy"], federation.finished)
