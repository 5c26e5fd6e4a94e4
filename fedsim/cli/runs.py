"""The runs of a study, from its experiments to its report; finished runs are not run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import typer

from fedsim.cli.display import Display
from fedsim.cli.results import print_report
from fedsim.config import Experiment
from fedsim.config.study_file import StudyFile
from fedsim.config.tune import EarlyStopping
from fedsim.driver.data_checks import Known, check_data
from fedsim.driver.launch import Launcher
from fedsim.driver.plan import study_lock, unfinished
from fedsim.errors import ConfigError, FedsimError
from fedsim.interrupt import check, last_words
from fedsim.storage.remote import Copy, url_of


def carry_out(experiments: Sequence[Experiment], folder: Path, address: str | None = None) -> None:
    """Run what a study has not finished, then print and write its report.

    Raises:
        FedsimError: A check failed, or some runs have failed.
        KeyboardInterrupt: After the runs in flight are marked as interrupted.
    """
    again = f"fedsim resume {url_of(folder) or folder}"
    with Launcher(folder, address) as launcher:
        failed, todo = _run_unfinished(launcher, experiments, again, set())
    print_report(folder)
    Copy(folder).push()
    if failed:
        raise FedsimError(
            f"{failed} of {todo} runs failed, as said above and in report.html; "
            f"to try them again: {again}"
        )


def tune(study: StudyFile, address: str | None = None) -> None:
    """Choose hyper-parameters. Ray stays while tuned ranges are extended.

    Raises:
        FedsimError: See `fedsim.driver.tuning.tune_study`.
        KeyboardInterrupt: After the trials in flight are marked as interrupted.
    """
    from fedsim.driver.tuning import tune_study

    checked, again = Known(), "start the same command again"
    with Launcher(study.folder, address, keep_going=True) as launcher:

        def run(trials: list[Experiment], early_stopping: EarlyStopping | None) -> None:
            _run_unfinished(launcher, trials, again, checked, early_stopping)

        tune_study(study, run)


def _run_unfinished(
    launcher: Launcher,
    experiments: Sequence[Experiment],
    again: str,
    checked: Known,
    early_stopping: EarlyStopping | None = None,
) -> tuple[int, int]:
    """Run the experiments that have not ended; a run that was stopped early has ended.

    `again` says how the user goes on after an interrupt. `checked` are partitions without need of a
    check.

    Returns:
        How many runs have failed, and how many were run.
    """
    folder = launcher.folder
    check_data(experiments, checked)
    check()
    with study_lock(folder):
        ended = ("finished", "stopped") if early_stopping else ("finished",)
        todo = unfinished(folder, experiments, ended)
        if not todo:
            if len(experiments) > 1:
                typer.echo(f"all {len(experiments)} runs are finished", err=True)
            return 0, 0
        kept = f"interrupted; what was committed is kept; to go on: {again}"
        with Display(todo, len(experiments) - len(todo)) as display, last_words(kept):
            launcher.run(todo, display.hear, early_stopping)
        return len(display.failed), len(todo)


def only_run(experiments: Sequence[Experiment], source: str) -> Experiment:
    """The one experiment that `fedsim run` is about.

    Raises:
        ConfigError: If the study describes several; the message says how to choose one.
    """
    first = experiments[0]
    if len(experiments) == 1:
        return first
    chosen = {"method": first.method, "seed": str(first.seed)}
    chosen = {k: v for k, v in chosen.items() if any(str(getattr(e, k)) != v for e in experiments)}
    alike = [e.flat() for e in experiments if (e.method, e.seed) == (first.method, first.seed)]
    varying = {k: v for k, v in first.flat().items() if any(e.get(k) != v for e in alike)}
    if "partition.scheme" in varying:  # it replaces the whole entry, so all of it is named
        options = first.partition.options().model_dump(exclude_unset=True)
        varying |= {f"partition.{key}": value for key, value in options.items()}
    if len(varying) > 1:  # follows from the others, unless it is an axis itself
        varying.pop("engine.group_size", None)
    chosen |= {key: v if isinstance(v, str) else json.dumps(v) for key, v in varying.items()}
    choice = " ".join(shlex.quote(f"{key}={value}") for key, value in chosen.items())
    raise ConfigError(
        f"{source} describes {len(experiments)} runs: use `fedsim sweep` for all of them, or "
        f"choose one by adding, for example: {choice}"
    )
