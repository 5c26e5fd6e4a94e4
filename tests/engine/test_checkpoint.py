"""Snapshots: what goes in comes out, whole or not at all."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.engine import checkpoint
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.errors import CheckpointError

CONTENT: dict[str, Any] = {
    "state": {
        "w": torch.arange(6.0).view(2, 3),
        "nested": {"n": torch.tensor(3), "list": [1, 2.5]},
    },
    "client_states": {
        0: {"times": 3, "name": "x"},
        7: {"last": torch.zeros(2, dtype=torch.float64)},
    },
    "downloaded": [0, 7],
    "scores": {"accuracy": 0.5, "split": "test"},
}


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    made = CheckpointFolder(tmp_path, "run-1")
    made.claim()
    return made


def files(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir() if not path.name.startswith("."))


def test_what_goes_in_comes_out(folder: CheckpointFolder):
    assert folder.latest() is None
    folder.save(3, CONTENT)
    found = folder.latest()
    assert found is not None
    assert found["round"] == 3
    assert torch.equal(found["state"]["w"], CONTENT["state"]["w"])
    assert found["state"]["nested"]["n"].dtype == torch.int64
    assert found["client_states"][0] == {"times": 3, "name": "x"}
    assert found["client_states"][7]["last"].dtype == torch.float64
    assert found["scores"] == CONTENT["scores"]


def test_the_last_two_rounds_are_kept(folder: CheckpointFolder):
    for number in (0, 1, 2, 9, 10):
        folder.save(number, CONTENT)
    assert files(folder) == ["round-000009.pt", "round-000010.pt"]
    found = folder.latest()
    assert found is not None
    assert found["round"] == 10


def test_a_kill_before_the_rename_leaves_the_round_before(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
):
    folder.save(1, CONTENT)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, killed)
            with pytest.raises(KeyboardInterrupt):
                folder.save(2, CONTENT)
        found = folder.latest()
        assert found is not None
        assert found["round"] == 1
    folder.save(2, CONTENT)  # and the next one is not disturbed by what was left
    found = folder.latest()
    assert found is not None
    assert found["round"] == 2


def test_drafts_of_killed_processes_do_not_pile_up(folder: CheckpointFolder):
    folder.save(2, CONTENT)
    (folder.path / ".round-000001.pt.tmp12345").write_bytes(b"half")
    folder.release()
    folder.claim()
    assert files(folder) == ["round-000002.pt"]


@pytest.mark.parametrize("value", [np.float64(1.0), np.int64(3), np.zeros(2), {1, 2}, Path("x")])
def test_what_could_not_be_read_back_is_not_written(folder: CheckpointFolder, value: Any):
    folder.save(1, CONTENT)
    with pytest.raises(CheckpointError, match=r"not \S+ \(state\.deep\[1\]\.x\)"):
        folder.save(2, {"state": {"deep": [0, {"x": value}]}})
    assert files(folder) == ["round-000001.pt"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
def test_a_truncated_file_is_refused_with_a_way_out(folder: CheckpointFolder, share: float):
    folder.save(1, CONTENT)
    folder.save(2, CONTENT)
    newest = folder.path / "round-000002.pt"
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"round-000002\.pt cannot be read.*delete it"):
        folder.latest()
    newest.unlink()
    found = folder.latest()
    assert found is not None
    assert found["round"] == 1


@pytest.mark.parametrize("content", [b"not a checkpoint", b"PK\x03\x04" + b"0" * 99])
def test_other_files_are_refused(folder: CheckpointFolder, content: bytes):
    (folder.path / "round-000001.pt").write_bytes(content)
    with pytest.raises(CheckpointError):
        folder.latest()


def test_a_snapshot_of_another_version_is_refused_with_a_way_out(folder: CheckpointFolder):
    torch.save({"format": 99, "run_id": "run-1"}, folder.path / "round-000001.pt")
    with pytest.raises(
        CheckpointError, match=r"another version of fedsim \(format 99.*start it anew"
    ):
        folder.latest()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"format": 99, "run_id": "run-2"}])
def test_tensors_that_are_no_snapshot_are_refused(folder: CheckpointFolder, content: Any):
    torch.save(content, folder.path / "round-000001.pt")
    with pytest.raises(CheckpointError):
        folder.latest()


def test_code_in_a_checkpoint_is_never_run(folder: CheckpointFolder):
    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(folder.path / "attacked"),)

    torch.save({"state": Attack()}, folder.path / "round-000001.pt")
    with pytest.raises(CheckpointError):
        folder.latest()
    assert not (folder.path / "attacked").exists()


def test_another_runs_snapshot_is_refused(tmp_path: Path, folder: CheckpointFolder):
    folder.save(1, CONTENT)
    other = CheckpointFolder(tmp_path, "run-2")
    other.path.mkdir()
    (folder.path / "round-000001.pt").rename(other.path / "round-000001.pt")
    with pytest.raises(CheckpointError, match="belongs to run 'run-1'.*not to 'run-2'"):
        other.latest()


def test_a_run_has_one_writer(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "_CLAIM_DEADLINE_S", 0.05)
    second = CheckpointFolder(folder.path.parents[1], "run-1")
    with pytest.raises(CheckpointError, match="being computed by another process"):
        second.claim()
    folder.release()
    second.claim()
