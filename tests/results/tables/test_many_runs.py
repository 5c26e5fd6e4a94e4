"""Reading many runs at once: the same rows as one by one, whatever happens to files meanwhile."""

import os
from pathlib import Path

import pandas as pd
import pytest

from fedsim.results.study import load
from fedsim.results.tables import many_runs
from fedsim.results.tables.writer import TableWriter

NAMES = ("runs", "rounds")


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(many_runs, "_MANY", 3)
    monkeypatch.setattr(many_runs, "_SETTLED_S", -60.0)  # nothing is too young


def write(folder: Path, run_id: str, rounds: int = 3, lr: float = 0.1, **columns) -> None:
    config = {"train": {"lr": lr}, "data": {"classnames": ["a", run_id]}}
    with TableWriter(folder, run_id) as writer:
        writer.update_run(config=config, method="m", status="finished", seed=0, **columns)
        writer.append("rounds", [{"round": r, "accuracy": lr * r} for r in range(rounds)])


def digests(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/.digest.parquet"))


def whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, pd.DataFrame]:
    """What every file says by itself."""
    with monkeypatch.context() as patch:
        patch.setattr(many_runs, "_NAME", ".no-such-file")
        patch.setattr(many_runs, "_MANY", 10**9)
        study = load(folder)
        return {name: getattr(study, name) for name in NAMES}


def check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(folder, monkeypatch)
    study = load(folder)
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(getattr(study, name), frame)
        some = list(frame.columns[:4])
        pd.testing.assert_frame_equal(load(folder).read(name, some), frame[some])


def test_few_runs_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "a")
    write(tmp_path, "b")
    check(tmp_path, monkeypatch)
    assert digests(tmp_path) == []


def test_many_runs_are_read_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in "cadb":
        write(tmp_path, name, lr=ord(name) / 100)
    check(tmp_path, monkeypatch)
    assert [path.parent.name for path in digests(tmp_path)] == ["rounds", "runs"]

    def refuse(*args, **kwargs):
        raise AssertionError("read one by one")

    monkeypatch.setattr(many_runs.files, "read_run", refuse)
    assert load(tmp_path).runs["run_id"].tolist() == list("abcd")
    assert load(tmp_path).rounds["round"].tolist() == [0, 1, 2] * 4


def test_runs_that_come_change_or_go_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in "bdfh":
        write(tmp_path, name)
    check(tmp_path, monkeypatch)
    write(tmp_path, "c", rounds=5)  # between known ones
    write(tmp_path, "z", lr=7.0)
    check(tmp_path, monkeypatch)
    with TableWriter(tmp_path, "d") as writer:  # goes on
        writer.truncate(2)
        writer.append("rounds", [{"round": 3, "accuracy": 0.9}])
        writer.update_run(status="failed")
    check(tmp_path, monkeypatch)
    assert load(tmp_path).runs.set_index("run_id").status["d"] == "failed"
    for name in NAMES:
        (tmp_path / name / "f.parquet").unlink()
    check(tmp_path, monkeypatch)
    for name in "klm":  # enough to write it anew
        write(tmp_path, name)
    before = [path.stat().st_mtime_ns for path in digests(tmp_path)]
    check(tmp_path, monkeypatch)
    assert [path.stat().st_mtime_ns for path in digests(tmp_path)] != before
    check(tmp_path, monkeypatch)


def test_settings_that_only_some_runs_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in "abc":
        write(tmp_path, name)
    check(tmp_path, monkeypatch)
    with TableWriter(tmp_path, "bb") as writer:
        writer.update_run(config={"train": {"momentum": 0.9}}, method="m")
    check(tmp_path, monkeypatch)
    runs = load(tmp_path).runs.set_index("run_id")
    assert runs["config.train.momentum"]["bb"] == 0.9
    assert pd.isna(runs["config.train.momentum"]["a"])
    lists = runs["config.data.classnames"]
    assert lists["a"] == ["a", "a"]


def test_sealed_parts_are_read_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in "abcd":
        write(tmp_path, name)
    os.rename(tmp_path / "rounds" / "b.parquet", tmp_path / "rounds" / "b-0001.parquet")
    check(tmp_path, monkeypatch)
    assert load(tmp_path).rounds["run_id"].tolist() == [run for run in "abcd" for _ in range(3)]


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"x" * 5000])
def test_a_damaged_one_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
):
    for name in "abcd":
        write(tmp_path, name)
    check(tmp_path, monkeypatch)
    for path in digests(tmp_path):
        path.write_bytes(content)
    check(tmp_path, monkeypatch)
    assert all(path.stat().st_size > 300 for path in digests(tmp_path))


def test_files_just_written_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(many_runs, "_SETTLED_S", 3600.0)
    for name in "abcd":
        write(tmp_path, name)
    check(tmp_path, monkeypatch)
    assert digests(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in "abcd":
        write(tmp_path, name)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(many_runs.os, "replace", refuse)
    study = load(tmp_path)
    assert study.runs["run_id"].tolist() == list("abcd")
    assert digests(tmp_path) == []
