"""Ctrl+C, SIGTERM and `kill -9` of the driver cost at most the rounds in flight."""

import os
import signal
from pathlib import Path

import pytest

from fedsim.cli.app import main
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from tests.integration.studies import (
    Command,
    at_random_round,
    committed,
    experiments,
    local,
    write_study,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 60
SEED = int(os.environ.get("FEDSIM_TEST_SEED", "0"))
"""Chooses the moments of death; results must not depend on it."""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(
        tmp_path,
        train={"rounds": ROUNDS, "batch_size": 4, "lr": 0.01},
        resources={"num_actors": 1},
    )


def identity(folder: Path, run_id: str) -> dict[str, tuple[int, int]]:
    """Inode and time of every file of a run's tables."""
    files = folder.glob(f"*/{run_id}*.parquet")
    return {str(f): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}


def report(folder: Path) -> int:
    codes: list[int] = []
    main(["report", str(folder)], codes.append)
    return codes[0]


def test_a_sweep_survives_kill_and_ctrl_c(study: Path, tmp_path: Path):
    ids = {e.method: e.run_id for e in experiments(study)}
    folder = tmp_path / "runs" / "small"
    expected = local(study, tmp_path / "local")

    first = Command("sweep", study)
    at_random_round(first, folder, SEED, 2, ROUNDS // 4, ids["cache_random"])
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    runs = load(folder).runs.set_index("run_id")
    finished = [run_id for run_id in runs.index if runs.status[run_id] == "finished"]
    assert ids["zero_shot"] in finished
    assert ids["cache_random"] not in finished
    untouched = {run_id: identity(folder, run_id) for run_id in finished}

    second = Command("sweep", study)  # at once, while the first one's actors may still be dying
    before = committed(folder)[ids["cache_random"]]
    at_random_round(second, folder, SEED + 1, before + 2, before + ROUNDS // 4, ids["cache_random"])
    first.wait_until_gone()
    second.signal(signal.SIGINT)
    assert second.wait() == 130, second.output
    assert f"fedsim resume {folder}" in second.output
    assert "Traceback" not in second.output
    second.wait_until_gone()
    interrupted = load(folder)
    assert interrupted.runs.set_index("run_id").status[ids["cache_random"]] == "interrupted"
    assert report(folder) == 0

    third = Command("resume", folder)
    assert third.wait() == 0, third.output
    third.wait_until_gone()
    study_now = load(folder)
    assert set(study_now.runs.status) == {"finished"}
    assert equal_results(expected, study_now) == []
    assert {run_id: identity(folder, run_id) for run_id in finished} == untouched
    assert set(study_now.events.kind) == {"resumed"}


def test_a_run_survives_ctrl_c_sigterm_and_kill(study: Path, tmp_path: Path):
    choose = ["method=fedavg_head", "resources.num_actors=2"]
    (only,) = experiments(study, *choose)
    folder = tmp_path / "runs" / "small"
    expected = local(study, tmp_path / "local", *choose)

    early = Command("run", study, *choose)
    early.until((folder / ".lock").exists)  # before or while Ray starts
    early.signal(signal.SIGINT)
    # Python ends by SIGINT itself where that struck inside an import; 130 to a shell either way.
    assert early.wait() in (130, -signal.SIGINT), early.output
    early.wait_until_gone()

    def go_on(seed: int) -> Command:
        done = committed(folder).get(only.run_id, 0)
        command = Command("run", study, *choose)
        at_random_round(command, folder, seed, done + 1, done + ROUNDS // 4, only.run_id)
        return command

    second = go_on(SEED + 2)
    second.signal(signal.SIGTERM)
    assert second.wait() == 130, second.output
    assert load(folder).runs.status.tolist() == ["interrupted"]
    assert report(folder) == 0

    third = go_on(SEED + 3)
    third.signal(signal.SIGKILL)
    assert third.wait() == -signal.SIGKILL
    assert load(folder).runs.status.tolist() == ["running"]

    last = Command("resume", folder)
    assert last.wait() == 0, last.output
    for command in (second, third, last):
        command.wait_until_gone()
    assert equal_results(expected, load(folder)) == []
