"""A writer that dies at any instant leaves tables that can be read."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.results.study import load
from fedsim.results.tables import files
from fedsim.results.tables.writer import TableWriter

ROOT = Path(__file__).parents[2]
ENDLESS = """
import sys
from fedsim.results.tables.writer import TableWriter
writer = TableWriter(sys.argv[1], "a", seal_rows=20)
writer.truncate(-1)
writer.update_run(method="fedavg", status="running")
writer.commit()
print("ready", flush=True)
for r in range(10**6):
    writer.append("clients", [{"round": r, "client_id": c, "num_samples": r} for c in range(7)])
    writer.append("rounds", [{"round": r, "accuracy": 0.5}])
    writer.commit()
"""


class Crash(Exception):
    """Stands for a kill."""


def committed(folder: Path, num_rounds: int, seal_rows: int = 3) -> TableWriter:
    writer = TableWriter(folder, "a", seal_rows=seal_rows)
    for r in range(num_rounds):
        writer.append("rounds", [{"round": r}])
        writer.commit()
    return writer


def test_killed_between_temporary_file_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writer = committed(tmp_path, 2)
    writer.append("rounds", [{"round": 2}])

    def crash(source: object, target: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            writer.commit()
    (tmp_path / "rounds" / ".a.parquet.tmp4711").write_bytes(b"half")  # a kill cleans nothing up
    assert load(tmp_path).rounds["round"].tolist() == [0, 1]
    resumed = TableWriter(tmp_path, "a")
    resumed.truncate(1)
    resumed.close()
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("action", ["close", "truncate"])
def test_killed_between_merging_and_removing_the_old_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
):
    writer = committed(tmp_path, 10)

    def crash(paths: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", crash)
        with pytest.raises(Crash):
            writer.close() if action == "close" else writer.truncate(4)
    expected = list(range(10 if action == "close" else 5))
    assert len(list((tmp_path / "rounds").iterdir())) > 1
    assert load(tmp_path).rounds["round"].tolist() == expected
    resumed = TableWriter(tmp_path, "a", seal_rows=3)
    resumed.truncate(expected[-1])
    for r in range(len(expected), 12):
        resumed.append("rounds", [{"round": r}])
        resumed.commit()
        assert load(tmp_path).rounds["round"].tolist() == list(range(r + 1))
    resumed.close()
    assert load(tmp_path).rounds["round"].tolist() == list(range(12))


def test_killed_between_sealing_and_the_next_commit(tmp_path: Path):
    committed(tmp_path, 3)
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["a-0001.parquet"]
    assert load(tmp_path).rounds["round"].tolist() == [0, 1, 2]
    resumed = TableWriter(tmp_path, "a", seal_rows=3)
    resumed.truncate(2)
    resumed.append("rounds", [{"round": 3}])
    resumed.close()
    assert load(tmp_path).rounds["round"].tolist() == [0, 1, 2, 3]


def test_reading_beside_a_writer_and_after_sigkill(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            seen = 0
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline or seen < 30:
                clients = load(tmp_path).clients["round"].to_numpy()
                assert len(clients) % 7 == 0
                assert (clients == [r for r in range(len(clients) // 7) for _ in range(7)]).all()
                assert len(clients) >= seen
                seen = len(clients)
        finally:
            process.send_signal(signal.SIGKILL)
    study = load(tmp_path)
    rounds = study.rounds["round"].tolist()
    assert rounds == list(range(len(rounds)))
    assert len(study.clients) // 7 - len(rounds) in (-1, 0, 1)
    assert study.runs["status"].tolist() == ["running"]
    last = rounds[-1] - 5
    with TableWriter(tmp_path, "a", seal_rows=20) as writer:
        writer.truncate(last)
    assert load(tmp_path).clients["round"].max() == last
