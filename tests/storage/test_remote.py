"""Studies on object storage: copies that follow it, and runs that another machine goes on with.

`file://` stands for the storage, and one cache folder each for the machines.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.driver.plan import read_plan, study_lock, write_plan
from fedsim.engine.local import drive
from fedsim.errors import ResultsError
from fedsim.results.tables.equality import equal_results
from fedsim.storage.remote import Copy, _Storage, local_folder, url_of
from tests.helpers import experiment, feature_arrays, federation, run

Machine = Callable[[str], None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Be on another machine from now on."""

    def move(name: str) -> None:
        monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / f"cache-{name}"))

    move("one")
    return move


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", **feature_arrays())
    return tmp_path / "data.npz"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/runs/study"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket" / "runs" / "study"


def test_a_folder_is_itself(tmp_path: Path):
    assert local_folder(tmp_path) == tmp_path
    assert url_of(tmp_path) is None
    (tmp_path / "kept").write_text("x")
    Copy(tmp_path).pull()
    Copy(tmp_path).push()
    assert files(tmp_path) == {"kept": b"x"}


def test_a_copy_knows_its_url(machine: Machine):
    for reading in (False, True):
        assert url_of(local_folder("s3://bucket/a b/study/", reading)) == "s3://bucket/a b/study"
    assert local_folder("s3://b/study", True) != local_folder("s3://b/study")


def test_a_run_is_there_after_every_commit_and_another_machine_goes_on(
    tmp_path: Path, machine: Machine, url: str, data: Path
):
    config = experiment(data, train__rounds=3)
    first = federation(config, local_folder(url))
    first.setup()
    first.step()
    assert f"checkpoints/{config.run_id}/round-000001.pt" in files(bucket(tmp_path))
    on_one = local_folder(url)
    first.step()
    os.unlink(on_one / "checkpoints" / config.run_id / ".lock")  # that machine is gone
    machine("two")
    assert not local_folder(url).exists()
    second = federation(config, local_folder(url))
    drive(second, lambda row: None)
    (event,) = fedsim.load(url).events.itertuples()
    assert event.message == "from the checkpoint of round 2"
    whole = run(config, tmp_path / "whole")
    assert equal_results(fedsim.load(url), fedsim.load(whole)) == []
    assert files(bucket(tmp_path)) == files(local_folder(url))
    kept = [name for name in files(bucket(tmp_path)) if name.startswith("checkpoints/")]
    assert sorted(kept) == [f"checkpoints/{config.run_id}/round-00000{n}.pt" for n in (2, 3)]


def test_what_a_machine_did_not_push_gives_way_to_what_is_there(
    tmp_path: Path, machine: Machine, url: str, data: Path, monkeypatch: pytest.MonkeyPatch
):
    """A kill between a commit and its push: tables and checkpoint go back together."""
    config = experiment(data, train__rounds=3)
    first = federation(config, local_folder(url))
    first.setup()
    monkeypatch.setattr(Copy, "push", lambda self: None)
    first.step()
    first.checkpoints.release()
    monkeypatch.undo()
    machine("one")
    again = federation(config, local_folder(url))
    assert again.setup()["round"] == 0
    again.step()
    again.checkpoints.release()
    assert fedsim.load(url).rounds["round"].tolist() == [0, 1]


def test_readers_leave_the_copy_of_a_running_study_alone(
    tmp_path: Path, machine: Machine, url: str
):
    folder = local_folder(url)
    (folder / "rounds").mkdir(parents=True)
    (folder / "rounds" / "a.parquet").write_bytes(b"not pushed yet")
    with pytest.raises(ResultsError, match=f"nothing at {url}"):
        fedsim.load(url)
    (bucket(tmp_path) / "rounds").mkdir(parents=True)
    (bucket(tmp_path) / "rounds" / "b.parquet").write_text("pushed")
    assert fedsim.load(url).path != folder
    assert (folder / "rounds" / "a.parquet").exists()


def test_only_what_has_changed_travels(
    tmp_path: Path, machine: Machine, url: str, monkeypatch: pytest.MonkeyPatch
):
    sent = []
    upload = _Storage.upload
    monkeypatch.setattr(
        _Storage,
        "upload",
        lambda self, path, name: sent.append(name) or upload(self, path, name),
    )
    folder, copy = local_folder(url), Copy(local_folder(url), "a")
    for name in ("rounds/a.parquet", "rounds/a-0001.parquet", "rounds/ab.parquet", "images/s.npz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "checkpoints" / "a").mkdir(parents=True)
    (folder / "checkpoints" / "a" / "round-0.pt").write_text("state")
    copy.push()
    own = ["images/s.npz", "rounds/a-0001.parquet", "rounds/a.parquet"]
    assert sent == [*own, "checkpoints/a/round-0.pt"], "another run's is not this one's to send"
    copy.push()
    assert len(sent) == 4
    copy = Copy(folder, "a")
    copy.pull()
    (folder / "rounds" / "a.parquet").write_text("longer than before")
    (folder / "rounds" / "a-0001.parquet").unlink()
    copy.push()
    assert sent[4:] == ["rounds/a.parquet"]
    there = files(bucket(tmp_path))
    assert there["rounds/a.parquet"] == b"longer than before"
    assert "rounds/a-0001.parquet" not in there
    got = []
    download = _Storage.download
    monkeypatch.setattr(
        _Storage,
        "download",
        lambda self, name, *rest: got.append(name) or download(self, name, *rest),
    )
    Copy(folder, "a").pull()
    assert got == []
    machine("two")
    Copy(local_folder(url)).pull()
    tables = {k: v for k, v in there.items() if not k.startswith("checkpoints")}
    assert files(local_folder(url)) == tables
    Copy(local_folder(url)).pull()
    assert len(got) == len(tables)


@pytest.mark.parametrize("failing", ["stamps", "download"])
def test_what_could_not_be_pulled_is_not_deleted(
    tmp_path: Path,
    machine: Machine,
    url: str,
    data: Path,
    failing: str,
    monkeypatch: pytest.MonkeyPatch,
):
    config = experiment(data, train__rounds=2)
    first = federation(config, local_folder(url))
    first.setup()
    first.checkpoints.release()
    before = files(bucket(tmp_path))
    machine("two")

    def broken(*args: Any) -> None:
        raise OSError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(_Storage, failing, broken)
        second = federation(config, local_folder(url))
        with pytest.raises(ResultsError, match="the network is down") as caught:
            second.setup()
    second.abort("failed", caught.value)
    assert files(bucket(tmp_path)) == before
    assert federation(config, local_folder(url)).setup()["round"] == 0


def test_whatever_moment_a_push_ends_at_the_run_can_go_on(
    tmp_path: Path, machine: Machine, url: str, data: Path, monkeypatch: pytest.MonkeyPatch
):
    """The storage dies after each of the operations of a push in turn."""
    config = experiment(data, train__rounds=2)
    done = 0
    for number in range(40):
        machine(f"first-{number}")
        shutil.rmtree(bucket(tmp_path), ignore_errors=True)
        one = federation(config, local_folder(url))
        one.setup()
        count = iter(range(number))

        def counted(name: str, count: Iterator[int] = count) -> Callable[..., Any]:
            original = getattr(_Storage, name)

            def call(*args: Any) -> Any:
                if next(count, None) is None:
                    raise OSError("gone")
                return original(*args)

            return call

        with monkeypatch.context() as patch:
            for name in ("upload", "delete"):
                patch.setattr(_Storage, name, counted(name))
            with suppress(ResultsError):
                one.step()
                done = number
            with suppress(ResultsError):
                one.checkpoints.release()
        machine(f"second-{number}")
        two = federation(config, local_folder(url))
        begun = two.setup()["round"]
        drive(two, lambda row: None)
        assert fedsim.load(url).rounds["round"].tolist() == [0, 1, 2], number
        if done:
            assert begun == 1
            break
    assert done > 3, "the push was cut at several places"


def test_plans_and_reports_are_the_study_s(tmp_path: Path, machine: Machine, url: str, data: Path):
    config = experiment(data)
    with study_lock(local_folder(url)):
        write_plan(local_folder(url), [config])
        assert "plan.json" in files(bucket(tmp_path))
        (local_folder(url) / "report.html").write_text("report")
    machine("two")
    folder = local_folder(url, reading=True)
    assert [e.run_id for e in read_plan(folder)] == [config.run_id]
    assert (folder / "report.html").read_text() == "report"


def test_storage_that_is_not_there_is_said_before_anything_runs(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ResultsError, match="no file system for gopher://.*output=FOLDER"):
        fedsim.load("gopher://host/study")
    (tmp_path / "file").write_text("")
    folder = local_folder(f"file://{tmp_path}/file/study")
    with (
        pytest.raises(ResultsError, match="cannot be read or written.*credentials"),
        study_lock(folder),
    ):
        raise AssertionError("nothing may begin")


def test_any_file_system_of_fsspec(machine: Machine, tmp_path: Path):
    url = "memory://bucket/study"
    folder = local_folder(url)
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    Copy(folder).push()
    machine("two")
    Copy(local_folder(url)).pull()
    assert files(local_folder(url)) == {"plan.json": b"{}"}
