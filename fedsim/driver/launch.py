"""From experiments to finished runs, in this process or on Ray.

All checks are made before the output folder is touched.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.config import Experiment
from fedsim.config.tune import EarlyStopping
from fedsim.driver.plan import write_plan
from fedsim.errors import ConfigError
from fedsim.interrupt import check

if TYPE_CHECKING:
    from fedsim.cluster.session import Stop

Listener = Callable[[str, dict[str, Any]], None]
"""Called with a run's id and its latest `round`, `accuracy`, `finished`, `stopped` or `error`;
before the first run begins with `encoded` of all `images` of its data."""


class Launcher:
    """Runs experiments of one study to their end, as often as it is asked to.

    The first runs on Ray start it, or connect to it. It stays until the `with` block ends, so that
    later runs need not wait for its start.

    Args:
        folder: The study's folder.
        address: A Ray cluster to use instead of this machine.
        keep_going: Report a failure to the listener also when there is only one run.
    """

    def __init__(
        self, folder: Path, address: str | None = None, *, keep_going: bool = False
    ) -> None:
        self.folder, self._address, self._keep_going = folder, address, keep_going
        self._session = ExitStack()
        self._stop: Stop | None = None

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self._session.close()
        if kind is None and self._stop is not None:
            self._stop.check()  # a request that came after the last run had ended

    def run(
        self,
        experiments: Sequence[Experiment],
        listener: Listener,
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        """Run experiments to their end on their one backend; the caller locks the study.

        The listener is called after every committed round and for every failure. Early stopping
        ends runs that lag behind; on Ray only.

        Raises:
            FedsimError: A check failed before any run began, or a single run failed.
            KeyboardInterrupt: After the runs in flight are marked as interrupted.
        """
        backends = {e.engine.backend for e in experiments}
        if len(backends) > 1:
            raise ConfigError("engine.backend: all runs of a study use the same, ray or local")
        if early_stopping and backends == {"local"}:
            raise ConfigError(
                "tune.early_stopping compares trials that run side by side, and engine.backend is "
                "local: set it to ray, or early_stopping to null"
            )
        check()
        alone = len(experiments) == 1 and not self._keep_going
        if backends == {"local"}:
            self._run_local(experiments, listener, alone)
        else:
            self._run_on_ray(experiments, listener, alone, early_stopping)

    def _run_local(
        self, experiments: Sequence[Experiment], listener: Listener, alone: bool
    ) -> None:
        from fedsim.engine.local import run_local
        from fedsim.inputs.preflight import preflight

        preflight(experiments, progress=_encoding(listener, experiments[0]))
        write_plan(self.folder, experiments)
        for config in experiments:

            def watch(row: dict[str, Any], run_id: str = config.run_id) -> None:
                last = row["round"] >= row["num_rounds"]
                seen = {"round": row["round"], "accuracy": row["accuracy"], "finished": last}
                listener(run_id, seen)

            try:
                run_local(config, self.folder, watch, {"command": command_line()})
            except Exception as error:
                if alone:
                    raise
                listener(config.run_id, {"error": f"{type(error).__name__}: {error}"})

    def _run_on_ray(
        self,
        experiments: Sequence[Experiment],
        listener: Listener,
        alone: bool,
        early_stopping: EarlyStopping | None,
    ) -> None:
        from fedsim.cluster.placement import place_each, plans_memory
        from fedsim.cluster.remote_preflight import preflight_on_ray
        from fedsim.cluster.session import nodes, session
        from fedsim.cluster.single_run import run_on_ray

        if self._stop is None:
            self._stop = self._session.enter_context(session(self._address))
        stop, folder, command = self._stop, self.folder.resolve(), command_line()
        stop.check()
        machines = nodes(plans_memory(e.resources for e in experiments))
        placements = place_each(experiments, machines)
        first, placement = experiments[0], placements[0]
        planned = partial(write_plan, self.folder, experiments)
        # Every process takes seconds to load torch. So the coordinator itself checks a single run
        # that encodes nothing.
        by_itself = alone and first.models.clip is None and not placement.gpus_per_actor
        if not by_itself:
            preflight_on_ray(experiments, placement, stop, _encoding(listener, first))
            planned()
        if alone:
            tell = partial(listener, first.run_id)
            run_on_ray(
                first, placement, folder, stop, tell, command, planned if by_itself else None
            )
            return
        from fedsim.cluster.sweep import sweep_on_ray  # loads Tune, which a single run spares

        # Runs of one shape share warm actors, so each shape has a sweep of its own.
        shapes: dict[str, list[Experiment]] = {}
        for config, placement in zip(experiments, placements, strict=True):
            shapes.setdefault(placement.shape, []).append(config)
        for group in shapes.values():
            shared = place_each(group, machines)[0]
            sweep_on_ray(group, shared, folder, stop, listener, command, early_stopping)


def command_line() -> str:
    """The user's command, for the tables."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _encoding(listener: Listener, first: Experiment) -> Callable[[int, int], None]:
    return lambda encoded, images: listener(first.run_id, {"encoded": encoded, "images": images})
