"""What Ray Tune does by itself: where one of these fails, a work-around of ours can go."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.cluster.sweep import Gate
from tests.cluster import tune_alone

pytestmark = pytest.mark.ray


def tune_by_itself(folder: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", tune_alone.__name__, str(folder), *words]
    # This process has the settings, and would hand them on.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TUNE_"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_tune_has_habits_that_the_settings_of_a_session_change(tmp_path: Path):
    habits = ("changes the folder", "talks", "takes Ctrl+C", "writes results")
    found = tune_by_itself(tmp_path / "alone")
    # Without the gate one warm actor does everything, although two have room.
    assert found == {"actors": 1} | dict.fromkeys(habits, True)
    settled = tune_by_itself(tmp_path / "settled", "settled")
    assert settled == {"actors": 1} | dict.fromkeys(habits, False)


def test_the_gate_opens_when_all_have_arrived():
    async def arrivals() -> list[bool]:
        gate = Gate(2)
        first = asyncio.create_task(gate.arrive())
        await asyncio.sleep(0)
        before = first.done()
        await gate.arrive()
        await asyncio.sleep(0)
        return [before, first.done()]

    assert asyncio.run(arrivals()) == [False, True]
