"""From experiments to finished runs: checks, the study's lock and plan, and the backend.

Everything that can be refused is refused before the output folder is touched.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedsim.config import Experiment
from fedsim.errors import ConfigError, ResultsError, did_you_mean

Watch = Callable[[Experiment, dict[str, Any]], None]
"""Called with an experiment and its latest `round`, `accuracy`, `finished` or `error`."""


def check_data(experiments: Sequence[Experiment]) -> None:
    """Load every data set and make every split, without torch: what is wrong is said now.

    Raises:
        DataError: If data is missing or broken, or a split cannot be made from it.
    """
    from fedsim.data.configured import draw_seed, read_dataset, split_clients

    datasets: dict[Any, Any] = {}
    splits: set[Any] = set()
    for config in experiments:
        source = (config.data.model_dump_json(), draw_seed(config))
        if source not in datasets:
            datasets[source] = read_dataset(config)
        split = (source, config.partition.model_dump_json(), config.partition_seed)
        if split not in splits:
            splits.add(split)
            train = datasets[source].train
            split_clients(config, train.labels, train.clients, train.domains)


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Make this process the only one that works on a study; a kill releases it.

    Raises:
        ResultsError: If the folder cannot be written, or another process works on it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ResultsError(
            f"another process is working on {folder}; wait for it, or choose another output"
        ) from error
    except OSError as error:
        raise ResultsError(
            f"cannot write to {folder} ({error.strerror}); choose another folder: output=FOLDER"
        ) from error
    try:
        yield
    finally:
        lock.release()
        if [path.name for path in folder.iterdir()] == [".lock"]:  # refused before any run
            (folder / ".lock").unlink()
            folder.rmdir()


def is_active(folder: Path) -> bool:
    """Whether a process is working on the study right now."""
    if not (folder / ".lock").exists():
        return False
    try:
        with study_lock(folder):
            return False
    except ResultsError:
        return True


def read_plan(folder: Path) -> list[Experiment]:
    """Every experiment ever started in a study, in order.

    Raises:
        ResultsError: If the folder holds no study.
    """
    path = folder / "plan.json"
    if not path.is_file():
        near = [p.name for p in folder.parent.glob("*") if (p / "plan.json").is_file()]
        hint = did_you_mean(folder.name, near) if near else "no study has been started there"
        raise ResultsError(f"no study in {folder}; {hint}")
    plan = json.loads(path.read_text())
    return [
        Experiment.model_validate(item).model_copy(update={"output": str(folder.parent)})
        for item in plan.values()
    ]


def unfinished(folder: Path, experiments: Sequence[Experiment]) -> list[Experiment]:
    """Those that have no finished run in the study's tables."""
    if not (folder / "runs").is_dir():
        return list(experiments)
    from fedsim.results.tables import load

    runs = load(folder).runs
    finished = set(runs.run_id[runs.status == "finished"]) if len(runs) else set()
    return [e for e in experiments if e.run_id not in finished]


def launch(
    experiments: Sequence[Experiment],
    folder: Path,
    watch: Watch,
    address: str | None = None,
    keep_going: bool = False,
) -> None:
    """Run experiments to their end on the configured backend; the caller holds the study's lock.

    Args:
        experiments: What to run; all of one backend.
        folder: The study's folder.
        watch: Called after every committed round and for every failure.
        address: A Ray cluster to use instead of this machine.
        keep_going: Report a failure through `watch` also when there is only one run.

    Raises:
        FedsimError: What was wrong before any run began, or what ended a single run.
        KeyboardInterrupt: After the runs in flight are marked as interrupted.
    """
    alone = len(experiments) == 1 and not keep_going
    if experiments[0].engine.backend == "local":
        _launch_local(experiments, folder, watch, alone)
    else:
        _launch_ray(experiments, folder, watch, alone, address)


def write_plan(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Add experiments to the study's plan, which `resume` follows."""
    path = folder / "plan.json"
    plan = json.loads(path.read_text()) if path.is_file() else {}
    plan |= {e.run_id: e.model_dump(mode="json") for e in experiments}
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(plan, indent=1))
    os.replace(draft, path)


def _launch_local(
    experiments: Sequence[Experiment], folder: Path, watch: Watch, alone: bool
) -> None:
    from fedsim.engine.local import run_local
    from fedsim.engine.preflight import preflight
    from fedsim.results.writer import TableWriter

    preflight(experiments)
    write_plan(folder, experiments)
    for config in experiments:

        def heard(row: dict[str, Any], config: Experiment = config) -> None:
            last = row["round"] >= row["num_rounds"]
            seen = {"round": row["round"], "accuracy": row["accuracy"], "finished": last}
            watch(config, seen)

        try:
            about = {"command": command_line()}
            run_local(config, TableWriter(folder, config.run_id), folder, heard, about)
        except Exception as error:
            if alone:
                raise
            watch(config, {"error": f"{type(error).__name__}: {error}"})


def _launch_ray(
    experiments: Sequence[Experiment],
    folder: Path,
    watch: Watch,
    alone: bool,
    address: str | None,
) -> None:
    from fedsim.cluster.placement import place
    from fedsim.cluster.preflight import preflight_on_ray
    from fedsim.cluster.session import Interrupted, nodes, session

    try:
        with session(address) as stop:
            machines = nodes()
            placements = {e.run_id: place(e, machines, len(experiments)) for e in experiments}
            preflight_on_ray(experiments, placements[experiments[0].run_id], stop)
            write_plan(folder, experiments)
            if alone:
                from fedsim.cluster.run import run_on_ray

                only = experiments[0]
                run_on_ray(
                    only,
                    placements[only.run_id],
                    folder.resolve(),
                    stop,
                    lambda p: watch(only, p.as_row()),
                    command_line(),
                )
                return
            from fedsim.cluster.sweep import sweep_on_ray

            shapes: dict[str, list[Experiment]] = {}
            for config in experiments:
                shapes.setdefault(_shape(placements[config.run_id]), []).append(config)
            for group in shapes.values():
                placement = place(group[0], machines, len(group))
                sweep_on_ray(group, placement, folder.resolve(), stop, watch, command_line())
    except Interrupted as error:
        raise KeyboardInterrupt from error


def command_line() -> str:
    """What the user typed, to be found in the tables."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _shape(placement: Any) -> str:
    """Runs of one shape share warm actors."""
    return repr((placement.head, placement.bundles, placement.actor_bundles))


def only_run(experiments: Sequence[Experiment], source: str) -> Experiment:
    """The one experiment that `fedsim run` is about.

    Raises:
        ConfigError: If the study describes several.
    """
    if len(experiments) == 1:
        return experiments[0]
    methods = ", ".join(dict.fromkeys(e.method for e in experiments))
    raise ConfigError(
        f"{source} describes {len(experiments)} runs: use `fedsim sweep {source}`, or choose one, "
        f"such as `fedsim run {source} method={experiments[0].method} seed={experiments[0].seed} "
        f"partition.scheme={experiments[0].partition.scheme}` (methods: {methods})"
    )
