"""Sinks receive the rows of a run: the tables on disk are one sink, a tracker is another.

Every sink gets the same calls, in this order:

    begin(last_round)            the run begins, or goes on after `last_round`
    update_run, append, save_*   what becomes known, as it becomes known
    commit()                     after every round: what was appended since is one round's
    end()                        the run has ended; the last `update_run` said how

The checkpoint of a round is written after `commit`. A kill in between makes the run compute that
round again. `begin` therefore names the last committed round: rows of later rounds are void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedsim.config.families import SINKS, load_part

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Rows one by one, or columns of equal length."""


class Sink(Protocol):
    """Base of all sinks. A subclass overrides the calls that it needs.

    It is made with the study's folder and the run's name:

    >>> class Printer(Sink):
    ...     def __init__(self, study_dir, run_id):
    ...         self.name = run_id
    ...     def append(self, table, rows):
    ...         if table == "rounds":
    ...             print(self.name, rows[0]["round"])
    >>> Printer(Path("runs"), "first").append("rounds", [{"round": 3}])
    first 3
    """

    def begin(self, last_round: int) -> None:
        """The run begins (-1), or goes on: rows of rounds after `last_round` are void."""

    def update_run(self, config: Mapping[str, Any] | None = None, **columns: Any) -> None:
        """Columns of the run's row in `runs` have these values from now on."""

    def append(self, table: str, rows: Rows) -> None:
        """More rows of a table."""

    def save_images(
        self, fingerprint: str, images: np.ndarray, labels: np.ndarray, classnames: Sequence[str]
    ) -> None:
        """A set of generated images, named by its fingerprint."""

    def save_nearest(self, fingerprint: str, inputs: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Which training images a set's images are nearest to, by set and data."""

    def save_round_images(
        self,
        round: int,
        images: np.ndarray,
        labels: np.ndarray,
        classnames: Sequence[str],
        clients: np.ndarray,
    ) -> None:
        """Images that the server made in a round."""

    def commit(self) -> None:
        """The round is complete."""

    def end(self) -> None:
        """The run has ended, or was interrupted."""


class Sinks:
    """All sinks of a run as one, which takes every call of `Sink`.

    An error of the tables ends the run. Any other sink that raises gets no more calls, and an event
    says so: a tracker that cannot be reached does not end a run.
    """

    def __init__(self, tables: Sink, others: Mapping[str, Sink] | None = None) -> None:
        self._tables, self._others = tables, dict(others or {})
        self._lost: list[tuple[str, str]] = []

    def __getattr__(self, call: str) -> Callable[..., None]:
        if call.startswith("_") or not hasattr(Sink, call):
            raise AttributeError(call)
        return partial(self._tell, call)

    def add(self, name: str, where: str, study_dir: Path, run_id: str) -> None:
        """One more sink, unless it raises while it is made."""
        try:
            self._others[name] = load_part(where)(study_dir, run_id)
        except Exception as error:  # a user's sink may raise anything
            self._lost.append((name, f"{type(error).__name__}: {error}"))

    def end_others(self) -> None:
        """The run has ended; the tables may still be written to."""
        self._tell_others("end")

    def end(self) -> None:
        """The tables are closed."""
        self._tables.end()

    def take_lost(self) -> list[tuple[str, str]]:
        """Name and error of the sinks that raised since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def _tell(self, call: str, *args: Any, **columns: Any) -> None:
        getattr(self._tables, call)(*args, **columns)
        self._tell_others(call, *args, **columns)

    def _tell_others(self, call: str, *args: Any, **columns: Any) -> None:
        for name, sink in list(self._others.items()):
            try:
                getattr(sink, call)(*args, **columns)
            except Exception as error:  # a user's sink may raise anything
                del self._others[name]
                self._lost.append((name, f"{type(error).__name__}: {error}"))


def open_sinks(study_dir: Path, run_id: str) -> Sinks:
    """The sinks of `fedsim.config.families.SINKS`, for one run."""
    sinks = Sinks(load_part(SINKS["tables"])(study_dir, run_id))
    for name, where in SINKS.items():
        if name != "tables":
            sinks.add(name, where, study_dir, run_id)
    return sinks
