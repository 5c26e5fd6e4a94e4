"""One run on Ray: a coordinator actor and its client actors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.cluster.coordinator import Coordinator
from fedsim.cluster.placement import Placement
from fedsim.cluster.session import LOST, Stop, beside_driver, own_error
from fedsim.config import Experiment
from fedsim.errors import ExecutionError, PlacementError
from fedsim.results.tables import files
from fedsim.results.tables.writer import TableWriter
from fedsim.storage.remote import Copy, url_of

_START_DEADLINE_S = 300.0


def run_on_ray(
    config: Experiment,
    placement: Placement,
    study_dir: Path,
    stop: Stop,
    listener: Callable[[dict[str, Any]], None] = lambda seen: None,
    command: str | None = None,
    checked: Callable[[], None] | None = None,
) -> None:
    """Run one experiment to its end, or on from its last checkpoint.

    Args:
        config: The resolved experiment.
        placement: Its resources (`fedsim.cluster.placement.place`).
        study_dir: Where tables and checkpoints go. All nodes see it under this path, or it is a
            copy of object storage that they all reach.
        stop: Looked at while waiting.
        listener: Called with `round`, `accuracy` and `finished` after every committed round.
        command: The user's command, for the tables.
        checked: If given, the coordinator makes the checks that need torch while the client actors
            start, and calls this when they pass. None: the checks were made before.

    Raises:
        PlacementError: The cluster did not grant the placement in time.
        FedsimError: The error that ended the run.
        KeyboardInterrupt: After marking the run as interrupted.
    """
    stop.leave = partial(mark_ended, study_dir, config.run_id, "interrupted")
    group = placement_group([b for b in (placement.head, *placement.bundles) if b], "PACK")
    coordinator: Any = None
    try:
        if not stop.wait(group.ready(), _START_DEADLINE_S):
            raise PlacementError(
                f"the cluster did not grant {placement.arithmetic} within {_START_DEADLINE_S:g} s: "
                f"other jobs hold its resources (`ray status` shows them)"
            )
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": placement.gpus_coordinator}
        head = PlacementGroupSchedulingStrategy(group, 0) if placement.head else beside_driver()
        options["scheduling_strategy"] = head
        actor: Any = ray.remote(Coordinator).options(**options)
        coordinator = actor.remote(placement, group)
        if checked:
            _get(coordinator.check.remote(config), stop)
            checked()
        where = url_of(study_dir) or str(study_dir)
        report = _get(coordinator.begin.remote(config, where, command), stop)
        listener(report)
        while not report["finished"]:
            report = _get(coordinator.step.remote(), stop)
            listener(report)
    except (KeyboardInterrupt, ExecutionError):  # the coordinator records its own errors
        if coordinator is not None:
            ray.kill(coordinator)  # so that it writes nothing after the mark
        mark_ended(study_dir, config.run_id, "interrupted")
        raise
    finally:
        remove_placement_group(group)  # ends the actors in it
        stop.leave = lambda: None


def _get(future: Any, stop: Stop) -> Any:
    """The result of a coordinator call; errors of fedsim are raised as they are."""
    stop.wait(future)
    try:
        return ray.get(future)
    except RayTaskError as error:
        raise own_error(error) or ExecutionError(f"the coordinator failed: {error}") from error
    except LOST as error:
        raise ExecutionError(f"the coordinator actor died: {error}; run `fedsim resume`") from error


def mark_ended(study_dir: Path, run_id: str, status: str) -> None:
    """Write the end of a run into its row, if the row says that it is running."""
    copy = Copy(study_dir, run_id)
    copy.pull()
    run = files.read_run(study_dir / "runs", run_id)
    if run is not None and run.table()["status"].to_pylist() == ["running"]:
        writer = TableWriter(study_dir, run_id)
        writer.update_run(status=status, finished_at=datetime.now(UTC))
        writer.commit()
        copy.push()
