"""The progress of runs: a live display on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedsim.config import Experiment

_TELL_EVERY_S = 10.0
"""Seconds between lines about images being encoded, without a terminal."""
_WIDE = 160
"""Characters of a line in a file or a pipe."""


class Display:
    """Progress of one or many runs.

    Args:
        experiments: All runs that will report.
        done: Runs of the study that were finished before.
        console: Where to draw; standard error by default, so that output can be piped.
    """

    def __init__(
        self, experiments: Sequence[Experiment], done: int = 0, console: Console | None = None
    ) -> None:
        self._console = console or Console(file=sys.stderr)
        self._live = self._console.is_terminal
        self._titles = {
            e.run_id: f"{e.method} | {e.partition.label} | seed {e.seed}" for e in experiments
        }
        self._rounds = {e.run_id: e.train.rounds for e in experiments}
        self._many = len(experiments) > 1
        self._started = time.monotonic()
        self._total, self._done = len(experiments) + done, done
        self.failed: dict[str, str] = {}
        self._tasks: dict[str, TaskID] = {}
        self._told = self._started
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._overall = self._progress.add_task(
            "[bold]runs", total=self._total, completed=done, note="starting", visible=self._many
        )
        self._encoding = self._progress.add_task("encoding images", note="", visible=False)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._progress.stop()

    def hear(self, run_id: str, seen: dict[str, Any]) -> None:
        """Take in one report of a run (see `fedsim.driver.launch.Listener`)."""
        if "images" in seen:
            self._hear_encoding(seen["encoded"], seen["images"])
            return
        if seen.get("error"):
            self.failed[run_id] = seen["error"]
            first = seen["error"].splitlines()[0]
            line = f"failed: {self._titles[run_id]}: {first}"
            self._console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
            self._forget(run_id)
            return
        note = f"accuracy {100 * seen['accuracy']:5.1f} %"
        if not self._live:
            self._say(run_id, seen, note)
        if run_id not in self._tasks:
            title, rounds = self._titles[run_id], self._rounds[run_id]
            self._tasks[run_id] = self._progress.add_task(title, total=rounds, note=note)
        self._progress.update(self._tasks[run_id], completed=seen["round"], note=note)
        if self._many:
            self._progress.update(self._overall, note="")
        if seen["finished"] or seen.get("stopped"):
            self._forget(run_id)

    def _hear_encoding(self, encoded: int, images: int) -> None:
        """Images encoded before the first run: a bar, or a line now and then if it takes long."""
        now = time.monotonic()
        if not self._live and now - self._told >= _TELL_EVERY_S:
            self._told = now
            line = f"{now - self._started:6.1f} s  encoded {encoded:,} of {images:,} images"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        busy = encoded < images
        self._progress.update(self._encoding, completed=encoded, total=images, visible=busy)

    def _forget(self, run_id: str) -> None:
        self._done += 1
        self._progress.update(self._overall, completed=self._done)
        task = self._tasks.pop(run_id, None)
        if task is not None and self._many:
            self._progress.remove_task(task)

    def _say(self, run_id: str, seen: dict[str, Any], note: str) -> None:
        """One line per finished run of a sweep, or per round of a single one."""
        if self._many and not seen["finished"] and not seen.get("stopped"):
            return
        note += ", stopped early" if seen.get("stopped") else ""
        where = f"[{self._done + 1}/{self._total}] " if self._many else ""
        passed = time.monotonic() - self._started
        line = f"{passed:6.1f} s  {where}{self._titles[run_id]}  round {seen['round']}  {note}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def output() -> Console:
    """Standard output as wide as the terminal; without one, wide enough to cut no number."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)
