"""Sinks: what they hear, after a resume too, and what becomes of one that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.config.families import SINKS
from fedsim.engine.sinks import Sink, Sinks
from fedsim.results.study import load
from fedsim.results.tables.writer import TableWriter
from tests.helpers import experiment, federation, run, write_features

TRACKER = '''
"""A tracker: one line of a file for every round."""

from fedsim.engine.sinks import Sink


class Tracker(Sink):
    def __init__(self, study_dir, run_id):
        self._file = study_dir / "tracked.txt"

    def begin(self, last_round):
        self._write(f"begin {last_round}")

    def append(self, table, rows):
        if table == "rounds":
            self._write(f"round {rows[0]['round']} {rows[0]['accuracy']:.6f}")

    def end(self):
        self._write("end")

    def _write(self, line):
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(line + "\\n")
'''


def test_a_sink_from_outside_hears_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tracker.py").write_text(TRACKER)
    monkeypatch.setitem(SINKS, "tracker", f"{tmp_path}/tracker.py:Tracker")
    config = experiment(write_features(tmp_path), "fedavg_head", train__rounds=3)
    out = tmp_path / "out"
    killed = federation(config, out)
    killed.setup()
    killed.step()
    killed.abort("interrupted")
    run(config, out)
    lines = (out / "tracked.txt").read_text().splitlines()
    told = [line.rsplit(" ", 1)[0] if line.startswith("round") else line for line in lines]
    assert told == [
        *("begin -1", "round 0", "round 1", "end"),
        *("begin 1", "round 2", "round 3", "end"),
    ]
    accuracies = [line.split()[2] for line in lines if line.startswith("round")]
    assert accuracies == [f"{value:.6f}" for value in load(out).rounds.accuracy]


class Failing(Sink):
    def __init__(self) -> None:
        self.heard = 0

    def append(self, table: str, rows: Any) -> None:
        self.heard += 1
        raise ConnectionError("the tracker's server is gone")


def test_a_sink_that_fails_costs_no_run(tmp_path: Path):
    config = experiment(write_features(tmp_path), "fedavg_head", train__rounds=2)
    out, failing = tmp_path / "out", Failing()
    run(config, out, sinks=Sinks(TableWriter(out, config.run_id), {"mine": failing}))
    study = load(out)
    assert study.runs.status.tolist() == ["finished"]
    assert failing.heard == 1
    (event,) = study.events[study.events.kind == "sink_lost"].message
    assert event == "sink 'mine' hears no more: ConnectionError: the tracker's server is gone"


def test_an_error_of_the_tables_ends_the_run(tmp_path: Path):
    config = experiment(write_features(tmp_path), "fedavg_head")
    with pytest.raises(ConnectionError):
        run(config, tmp_path / "out", sinks=Sinks(Failing()))


class Late(Sink):
    def end(self) -> None:
        raise ConnectionError("gone at the end")


def test_a_sink_that_fails_at_the_end_is_told(tmp_path: Path):
    config, out = experiment(write_features(tmp_path), "fedavg_head"), tmp_path / "out"
    run(config, out, sinks=Sinks(TableWriter(out, config.run_id), {"late": Late()}))
    study = load(out)
    assert study.runs.status.tolist() == ["finished"]
    (event,) = study.events[study.events.kind == "sink_lost"].message
    assert "'late' hears no more: ConnectionError: gone at the end" in event


def test_a_sink_that_cannot_be_made_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bad.py").write_text("class Bad:\n    def __init__(self, *place):\n        1 / 0\n")
    monkeypatch.setitem(SINKS, "bad", f"{tmp_path}/bad.py:Bad")
    study = load(run(experiment(write_features(tmp_path), "fedavg_head"), tmp_path / "out"))
    assert study.runs.status.tolist() == ["finished"]
    (event,) = study.events[study.events.kind == "sink_lost"].message
    assert "'bad' hears no more: ZeroDivisionError" in event
