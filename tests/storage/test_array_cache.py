"""The node's shared arrays: computed once, complete or absent, read-only."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import DataError
from fedsim.storage.array_cache import (
    UnfinishedEntry,
    address,
    file_identity,
    is_stored,
    shared_arrays,
)
from fedsim.storage.remote import cache_folder


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_arrays_are_made_once_and_then_mapped():
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(6.0).reshape(2, 3), "y": np.array(["a", "b"]), "none": np.empty(0)}

    first, second = shared_arrays({"k": 1}, make), shared_arrays({"k": 1}, make)
    assert calls == [1]
    for found in (first, second):
        assert set(found) == {"x", "y", "none"}
        assert found["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["y"].tolist() == ["a", "b"]
    assert isinstance(second["x"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        second["x"][0, 0] = 1.0


def test_other_keys_are_other_entries():
    assert shared_arrays({"k": 1}, lambda: {"x": np.array([1])})["x"].tolist() == [1]
    assert shared_arrays({"k": 2}, lambda: {"x": np.array([2])})["x"].tolist() == [2]
    assert address({"a": 1, "b": [2, {"c": None}]}) == address({"b": [2, {"c": None}], "a": 1})
    keys = [{"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": None}, {"b": 1}, {"a": [1]}, {}]
    assert len({address(key) for key in keys}) == len(keys)


def test_a_failure_leaves_nothing_behind(store: Path):
    def broken() -> dict[str, np.ndarray]:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        shared_arrays({"k": 1}, broken)
    unsavable = {"x": np.zeros(2), "y": np.array([object()], dtype=object)}
    with pytest.raises(ValueError, match="Object arrays"):
        shared_arrays({"k": 1}, lambda: unsavable)
    assert [path.name for path in store.iterdir() if path.is_dir()] == []
    assert shared_arrays({"k": 1}, lambda: {"x": np.array([3])})["x"].tolist() == [3]


def test_a_kill_while_writing_leaves_no_entry(store: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shared_arrays({"k": 1}, lambda: {"x": np.zeros(2)})
    assert not (store / address({"k": 1})).exists()


def test_threads_of_one_process_compute_once():
    calls: list[int] = []
    barrier = threading.Barrier(4)

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        time.sleep(0.05)  # long enough for the others to arrive
        return {"x": np.arange(3)}

    def work() -> None:
        barrier.wait()
        assert shared_arrays({"k": "threads"}, make)["x"].tolist() == [0, 1, 2]

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def compute(folder: str) -> None:
    """One process of several that want the same entry."""
    os.environ["FEDSIM_CACHE"] = folder

    def make() -> dict[str, np.ndarray]:
        with open(os.path.join(os.path.dirname(folder), "calls"), "a") as file:
            file.write("1")
        return {"x": np.arange(1000)}

    assert shared_arrays({"k": "processes"}, make)["x"].sum() == 499500


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_of_one_node_compute_once(store: Path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=compute, args=(str(store),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (store.parent / "calls").read_text() == "1"


def test_a_folder_that_cannot_be_written_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set FEDSIM_CACHE"):
        shared_arrays({"k": 1}, lambda: {"x": np.zeros(2)})


def test_trouble_of_the_data_is_not_blamed_on_the_cache():
    def make() -> dict[str, np.ndarray]:
        raise FileNotFoundError(2, "No such file", "images/cat.png")

    with pytest.raises(FileNotFoundError, match="cat.png"):
        shared_arrays({"k": 1}, make)


def test_the_folder_is_the_users_unless_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FEDSIM_CACHE")
    assert cache_folder().name == "fedsim"


def test_files_are_known_by_name_size_and_time(tmp_path: Path):
    file = tmp_path / "data.npz"
    file.write_bytes(b"abc")
    first = file_identity(file)
    assert first == file_identity(file)
    os.utime(file, ns=(1, 1))
    moved = file_identity(file)
    assert moved != first
    file.write_bytes(b"abcd")
    os.utime(file, ns=(1, 1))
    assert file_identity(file) != moved


def test_folders_are_known_by_their_files(tmp_path: Path):
    folder = tmp_path / "images"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"1")
    first = file_identity(folder)
    assert first[1] == 1
    (folder / "cat" / "2.png").write_bytes(b"2")
    second = file_identity(folder)
    assert second != first
    (folder / "cat" / "2.png").rename(folder / "cat" / "3.png")
    assert file_identity(folder) != second


def test_parts_outlive_a_kill_and_leave_with_the_whole(store: Path):
    key, calls = {"k": "parts"}, list[int]()

    def make(die_at: int) -> dict[str, np.ndarray]:
        unfinished, found = UnfinishedEntry(key), []
        for number in range(3):
            part = unfinished.read(number)
            if part is None:
                if number == die_at:
                    raise KeyboardInterrupt
                calls.append(number)
                part = unfinished.kept(number, np.full(2, number))
                assert isinstance(part, np.memmap)
            found.append(part)
        return {"x": np.stack(found)}

    with pytest.raises(KeyboardInterrupt):
        shared_arrays(key, lambda: make(die_at=2))
    assert not is_stored(key)
    found = shared_arrays(key, lambda: make(die_at=-1))
    assert found["x"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert calls == [0, 1, 2]  # none was made twice
    assert [path.name for path in store.iterdir() if path.is_dir()] == [address(key)]


def test_a_part_cut_short_is_no_part(store: Path):
    parts = UnfinishedEntry({"k": 1})
    parts.kept(3, np.arange(100))
    (file,) = store.rglob("000003.npy")
    file.write_bytes(file.read_bytes()[:200])
    assert parts.read(3) is None
    file.write_bytes(b"")
    assert parts.read(3) is None
    assert parts.read(4) is None
    parts.kept(3, np.arange(2))
    found = parts.read(3)
    assert found is not None
    assert found.tolist() == [0, 1]
    parts.remove()
    assert parts.read(3) is None
    parts.remove()


def test_parts_that_cannot_be_written_are_explained(store: Path):
    store.write_text("a file where the cache folder should be")
    with pytest.raises(DataError, match="set FEDSIM_CACHE"):
        UnfinishedEntry({"k": 1}).kept(0, np.zeros(1))
