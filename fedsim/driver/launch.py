"""From experiments to finished runs: checks, the study's lock and plan, and the backend.

Everything that can be refused is refused before the output folder is touched.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedsim.config import Experiment
from fedsim.config.study import EarlyStopping
from fedsim.errors import ConfigError, ResultsError, did_you_mean
from fedsim.interrupt import check
from fedsim.storage.atomic import whole_file
from fedsim.storage.remote import Copy, url_of

Watch = Callable[[Experiment, dict[str, Any]], None]
"""Called with an experiment and its latest `round`, `accuracy`, `finished`, `stopped` or `error`;
before the first run begins with `encoded` of all `images` of its data."""


def check_data(experiments: Sequence[Experiment]) -> None:
    """Load every data set and make every split, without torch: what is wrong is said now.

    Raises:
        DataError: If data is missing or broken, or a split cannot be made from it.
    """
    from fedsim.data.from_config import draw_seed, read_dataset, split_clients

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
    """Make this process the only one on this machine that works on a study; a kill releases it.

    A copy of a study on object storage is brought up to date before and after.

    Raises:
        ResultsError: If the folder cannot be written, or another process works on it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ResultsError(
            f"another process is working on {folder}; wait for it, or choose another folder: "
            f"output=FOLDER"
        ) from error
    except OSError as error:
        raise ResultsError(
            f"cannot write to {folder} ({error.strerror}); choose another folder: output=FOLDER"
        ) from error
    copy = Copy(folder)
    try:
        copy.pull()
        copy.probe()
        yield
        copy.push()
        copy.pull()  # what other machines have done
    finally:
        lock.release()
        with suppress(OSError):
            if [path.name for path in folder.iterdir()] == [".lock"]:  # refused before any run
                (folder / ".lock").unlink()
                for path in made:
                    path.rmdir()


def find_study(folder: Path) -> None:
    """Refuse a folder in which no study has been started.

    Raises:
        ResultsError: Naming the studies near it.
    """

    def is_study(path: Path) -> bool:
        return (path / "plan.json").is_file() or (path / "runs").is_dir()

    Copy(folder).pull()
    if is_study(folder):
        return
    if folder.is_file():
        hint = "it is a file; give a study's output folder, such as runs/quickstart"
    elif inside := sorted(str(path) for path in folder.glob("*") if is_study(path)):
        hint = f"it holds studies; choose one: {', '.join(inside)}"
    elif near := [path.name for path in folder.parent.glob("*") if is_study(path)]:
        hint = did_you_mean(folder.name, near)
    else:
        hint = "no study has been started there"
    raise ResultsError(f"no study in {folder}; {hint}")


def read_plan(folder: Path) -> list[Experiment]:
    """Every final run ever started in a study, in order.

    Raises:
        ResultsError: If the folder holds no study, only trials, or its plan was changed.
    """
    find_study(folder)
    path = folder / "plan.json"
    try:
        plan = json.loads(path.read_text())
        found = {key: Experiment.model_validate(item) for key, item in plan.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ResultsError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); start the study's file again "
            f"instead: what is finished is not run again"
        ) from error
    final = {key: e for key, e in found.items() if e.phase == "final"}
    if not final:
        raise ResultsError(
            f"{folder} holds tuning trials only; to go on, start `fedsim sweep STUDY.yaml --tune` "
            f"again: what is finished is not run again"
        )
    _check_unchanged(folder, final)
    url = url_of(folder)
    output = str(folder.parent) if url is None else url.rpartition("/")[0]
    return [
        experiment.model_copy(update={"output": output})
        for key, experiment in final.items()
        if experiment.run_id == key
    ]


def _check_unchanged(folder: Path, planned: dict[str, Experiment]) -> None:
    """A run goes on only as what it was: settings and method files stay the same.

    Raises:
        ResultsError: Saying what changed.
    """
    changed = {key: e for key, e in planned.items() if e.run_id not in (key, *planned)}
    if not changed:
        return
    from fedsim.results.study import load

    runs = load(folder).runs.set_index("run_id")
    problems = []
    for key, experiment in changed.items():
        row = runs.loc[key].to_dict() if key in runs.index else {}
        if row.get("status") == "finished":
            continue
        file = experiment.use.partition(":")[0]
        settings = {f"config.{name}": value for name, value in experiment.flat().items()}
        reasons = [
            f"{name.removeprefix('config.')} was {row[name]} and is {value}"
            for name, value in settings.items()
            if name in row and row[name] != value
        ]
        if file.endswith(".py"):
            reasons.append(f"{file} {'was edited' if Path(file).is_file() else 'is not there'}")
        problems.append(f"{key}: {', '.join(reasons) or 'its settings were edited'}")
    if problems:
        raise ResultsError(
            f"{folder} cannot be resumed, for a run goes on only as what it was ("
            f"{'; '.join(problems)}); undo the change, or start the study's file anew"
        )


def unfinished(
    folder: Path, experiments: Sequence[Experiment], ended: Sequence[str] = ("finished",)
) -> list[Experiment]:
    """Those whose run in the study's tables has not ended in one of these ways."""
    if not (folder / "runs").is_dir():
        return list(experiments)
    from fedsim.results.study import load

    runs = load(folder).read("runs", ["run_id", "status"])
    done = set(runs.run_id[runs.status.isin(ended)])
    return [e for e in experiments if e.run_id not in done]


def launch(
    experiments: Sequence[Experiment],
    folder: Path,
    watch: Watch,
    address: str | None = None,
    keep_going: bool = False,
    early_stopping: EarlyStopping | None = None,
) -> None:
    """Run experiments to their end on the configured backend; the caller holds the study's lock.

    Args:
        experiments: What to run; all of one backend.
        folder: The study's folder.
        watch: Called after every committed round and for every failure.
        address: A Ray cluster to use instead of this machine.
        keep_going: Report a failure through `watch` also when there is only one run.
        early_stopping: Whether and when runs that lag behind end early; on Ray.

    Raises:
        FedsimError: What was wrong before any run began, or what ended a single run.
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
    alone = len(experiments) == 1 and not keep_going
    if experiments[0].engine.backend == "local":
        _launch_local(experiments, folder, watch, alone)
    else:
        _launch_ray(experiments, folder, watch, alone, address, early_stopping)


def write_plan(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Add experiments to the study's plan, which `resume` follows."""
    path = folder / "plan.json"
    plan = json.loads(path.read_text()) if path.is_file() else {}
    plan |= {e.run_id: e.model_dump(mode="json") for e in experiments}
    with whole_file(path) as file:
        file.write(json.dumps(plan, indent=1).encode())
    Copy(folder).push()


def _launch_local(
    experiments: Sequence[Experiment], folder: Path, watch: Watch, alone: bool
) -> None:
    from fedsim.engine.local import run_local
    from fedsim.inputs.preflight import preflight
    from fedsim.results.tables.writer import TableWriter

    preflight(experiments, progress=partial(_encoding, watch, experiments[0]))
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
    early_stopping: EarlyStopping | None,
) -> None:
    from fedsim.cluster.placement import place, plans_memory
    from fedsim.cluster.remote_preflight import preflight_on_ray
    from fedsim.cluster.session import Interrupted, nodes, session

    try:
        with session(address) as stop:
            machines = nodes(plans_memory(experiments))
            placements = {e.run_id: place(e, machines, len(experiments)) for e in experiments}
            first = experiments[0]
            placement = placements[first.run_id]

            planned = partial(write_plan, folder, experiments)
            # Every process takes seconds to load torch: of a single run that encodes nothing, the
            # coordinator makes the checks.
            by_itself = alone and first.models.clip is None and not placement.gpus_per_actor
            if not by_itself:
                encoding = partial(_encoding, watch, first)
                preflight_on_ray(experiments, placement, stop, encoding)
                planned()
            if alone:
                from fedsim.cluster.single_run import run_on_ray

                run_on_ray(
                    first,
                    placement,
                    folder.resolve(),
                    stop,
                    lambda p: watch(first, p.as_row()),
                    command_line(),
                    planned if by_itself else None,
                )
                return
            from fedsim.cluster.sweep import sweep_on_ray

            shapes: dict[str, list[Experiment]] = {}
            for config in experiments:
                shapes.setdefault(_shape(placements[config.run_id]), []).append(config)
            for group in shapes.values():
                shared = place(group[0], machines, len(group))
                at = folder.resolve()
                sweep_on_ray(group, shared, at, stop, watch, command_line(), early_stopping)
    except Interrupted as error:
        raise KeyboardInterrupt from error


def _encoding(watch: Watch, config: Experiment, encoded: int, images: int) -> None:
    watch(config, {"encoded": encoded, "images": images})


def command_line() -> str:
    """What the user typed, to be found in the tables."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _shape(placement: Any) -> str:
    """Runs of one shape share warm actors."""
    return repr((placement.head, placement.bundles, placement.actor_bundles))


def only_run(experiments: Sequence[Experiment], source: str) -> Experiment:
    """The one experiment that `fedsim run` is about.

    Raises:
        ConfigError: If the study describes several; the message says how to choose one.
    """
    if len(experiments) == 1:
        return experiments[0]
    raise ConfigError(
        f"{source} describes {len(experiments)} runs: use `fedsim sweep` for all of them, or "
        f"choose one by adding, for example: {_choice(experiments)}"
    )


def _choice(experiments: Sequence[Experiment]) -> str:
    """The overrides that leave the first experiment alone."""
    first = experiments[0]
    chosen = {"method": first.method, "seed": str(first.seed)}
    chosen = {k: v for k, v in chosen.items() if any(str(getattr(e, k)) != v for e in experiments)}
    alike = [e.flat() for e in experiments if (e.method, e.seed) == (first.method, first.seed)]
    varying = {k: v for k, v in first.flat().items() if any(e.get(k) != v for e in alike)}
    if "partition.scheme" in varying:  # it replaces the whole entry: say all of it
        needed = ("dirichlet_alpha", "classes_per_client", "size_sigma", "imbalance_factor")
        own = {f"partition.{key}": getattr(first.partition, key) for key in needed}
        varying |= {key: value for key, value in own.items() if value is not None}
    if len(varying) > 1:  # follows from the others, unless it is an axis itself
        varying.pop("engine.group_size", None)
    chosen |= {key: v if isinstance(v, str) else json.dumps(v) for key, v in varying.items()}
    return " ".join(shlex.quote(f"{key}={value}") for key, value in chosen.items())
