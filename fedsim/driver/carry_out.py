"""A study from its experiments to its report; what is finished is not run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import typer

from fedsim.config import Experiment
from fedsim.config.study_file import StudyFile
from fedsim.config.tune import EarlyStopping
from fedsim.driver.data_checks import Known, check_data
from fedsim.driver.launch import Launcher
from fedsim.driver.plan import study_lock, unfinished
from fedsim.errors import FedsimError
from fedsim.interrupt import check, last_words
from fedsim.storage.remote import Copy, url_of


class Screen(Protocol):
    """What the user watches while runs go on, such as `fedsim.cli.display.Display`."""

    failed: dict[str, str]

    def hear(self, run_id: str, seen: dict[str, Any]) -> None:
        """Take in one report of a run: a `fedsim.driver.launch.Listener`."""


MakeScreen = Callable[[Sequence[Experiment], int], AbstractContextManager[Screen]]
"""Called with the runs to come, and with the number of runs that were finished before."""


def carry_out(
    experiments: Sequence[Experiment],
    folder: Path,
    make_screen: MakeScreen,
    address: str | None = None,
) -> None:
    """Run what a study has not finished, then print and write its report.

    Raises:
        FedsimError: What was wrong, or how many of several runs have failed.
        KeyboardInterrupt: After the runs in flight are marked as interrupted.
    """
    from fedsim.driver.reports import print_report

    where = url_of(folder) or folder
    with Launcher(folder, address) as launcher:
        again = f"fedsim resume {where}"
        failed, todo = _run_unfinished(launcher, experiments, folder, make_screen, again)
    print_report(folder)
    Copy(folder).push()
    if failed:
        raise FedsimError(
            f"{failed} of {todo} runs failed, as said above and in report.html; "
            f"to try them again: {again}"
        )


def tune(study: StudyFile, make_screen: MakeScreen, address: str | None = None) -> None:
    """Choose hyper-parameters; Ray stays between the ranges of the study and their extensions.

    Raises:
        FedsimError: See `fedsim.driver.tuning.tune_study`.
        KeyboardInterrupt: After the trials in flight are marked as interrupted.
    """
    from fedsim.driver.tuning import tune_study

    checked: Known = set()
    with Launcher(study.folder, address) as launcher:

        def run(trials: list[Experiment], early_stopping: EarlyStopping | None) -> None:
            again = "start the same command again"
            _run_unfinished(
                launcher, trials, study.folder, make_screen, again, True, early_stopping, checked
            )

        tune_study(study, run)


def _run_unfinished(
    launcher: Launcher,
    experiments: Sequence[Experiment],
    folder: Path,
    make_screen: MakeScreen,
    again: str,
    keep_going: bool = False,
    early_stopping: EarlyStopping | None = None,
    checked: Known | None = None,
) -> tuple[int, int]:
    """Run what has not ended.

    Args:
        launcher: Runs them.
        experiments: What has to have ended.
        folder: The study's folder.
        make_screen: What the user watches.
        again: How the user goes on after an interrupt.
        keep_going: See `Launcher.run`.
        early_stopping: See `Launcher.run`; a run that was stopped early has ended.
        checked: Partitions that need no check.

    Returns:
        How many runs have failed, and how many were run.
    """
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
        with make_screen(todo, len(experiments) - len(todo)) as screen, last_words(kept):
            launcher.run(todo, screen.hear, keep_going, early_stopping)
        return len(screen.failed), len(todo)
