"""The folder of a study: its lock, its planned runs, and the runs that are still to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedsim.config import Experiment
from fedsim.errors import ResultsError, did_you_mean
from fedsim.storage.atomic import whole_file
from fedsim.storage.remote import Copy, url_of


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
        copy.pull()  # the runs of other machines
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
    """Refuse a run whose settings or method file have changed.

    Raises:
        ResultsError: Naming the changes.
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
            f"{folder} cannot be resumed, because runs were changed ({'; '.join(problems)}); "
            f"undo the change, or start the study's file anew"
        )


def unfinished(
    folder: Path, experiments: Sequence[Experiment], ended: Sequence[str] = ("finished",)
) -> list[Experiment]:
    """The experiments whose run in the tables has not ended in one of these ways."""
    if not (folder / "runs").is_dir():
        return list(experiments)
    from fedsim.results.study import load

    runs = load(folder).read("runs", ["run_id", "status"])
    done = set(runs.run_id[runs.status.isin(ended)])
    return [e for e in experiments if e.run_id not in done]


def write_plan(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Add experiments to the study's plan, which `resume` follows."""
    path = folder / "plan.json"
    plan = json.loads(path.read_text()) if path.is_file() else {}
    plan |= {e.run_id: e.model_dump(mode="json") for e in experiments}
    with whole_file(path) as file:
        file.write(json.dumps(plan, indent=1).encode())
    Copy(folder).push()
