"""Small studies as files, and `fedsim` as a process of its own that can be watched and killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from fedsim.config import Experiment
from fedsim.config.study_file import load_study
from fedsim.driver.launch import Launcher
from fedsim.driver.plan import study_lock
from fedsim.methods import METHODS
from fedsim.results.study import Study, load
from tests.helpers import write_features

DEADLINE_S = 180.0
TAG = "FEDSIM_TEST_TAG"


def write_study(folder: Path, **changes: Any) -> Path:
    """A study of three methods on a file of features; `changes` replace top-level blocks."""
    tree: dict[str, Any] = {
        "study": "small",
        "output": str(folder / "runs"),
        "data": {"name": str(write_features(folder))},
        "models": {"clip": None, "generator": None, "logit_scale": 10.0},
        "partition": {"scheme": "dirichlet_label", "num_clients": 8, "dirichlet_alpha": 1.0},
        "train": {"rounds": 3, "batch_size": 4, "lr": 0.05, "momentum": 0.9},
        "engine": {"group_size": 2},
        "methods": {
            "zero_shot": None,
            "fedavg_head": None,
            "cache_random": {"use": "cachefl", "cache.init": "random"},
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return path


def experiments(path: Path, *overrides: str) -> list[Experiment]:
    """What a study file describes."""
    return load_study(path, overrides).experiments(METHODS)


def run_all(todo: Sequence[Experiment], folder: Path, keep_going: bool = False) -> Study:
    """Run experiments in this process or on the Ray that it is connected to."""
    failures: list[str] = []

    def hear(run_id: str, seen: dict[str, Any]) -> None:
        if seen.get("error"):
            failures.append(f"{run_id}: {seen['error']}")

    with study_lock(folder), Launcher(folder, keep_going=keep_going) as launcher:
        launcher.run(todo, hear)
    assert failures == []
    return load(folder)


def local(path: Path, folder: Path, *overrides: str) -> Study:
    """The same study in this process: what every other way of running it must equal."""
    return run_all(experiments(path, "engine.backend=local", *overrides), folder)


def committed(folder: Path) -> dict[str, int]:
    """Last committed round of every run of a study, also while it runs."""
    found: dict[str, int] = {}
    for file in folder.glob("checkpoints/*/round-*.pt"):
        run_id, number = file.parent.name, int(file.stem.removeprefix("round-"))
        found[run_id] = max(found.get(run_id, 0), number)
    return found


def _heed_interrupts() -> None:
    """What a shell starts with `&` ignores SIGINT, tests too, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """`fedsim` in a process group of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self.tag = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedsim", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, TAG: self.tag, "COLUMNS": "200"},
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
        self.output = ""

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something to happen while the command runs."""
        deadline = time.monotonic() + DEADLINE_S
        while not happened():
            if self._process.poll() is not None:
                raise AssertionError(f"ended with {self.wait()} before it:\n{self.output}")
            if time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"it did not happen:\n{self.output}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the driver alone, as `kill` does."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Exit code; the output is in `output` then."""
        try:
            text, _ = self._process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.end()
            raise
        self.output += text
        return self._process.returncode

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.kill()
        self.output += self._process.communicate()[0]

    def processes(self) -> list[psutil.Process]:
        """The driver and everything that it started, wherever it was adopted."""
        return [p for p in psutil.process_iter() if _tag(p) == self.tag]

    def wait_until_gone(self) -> None:
        """Nothing that the command started stays behind."""
        deadline = time.monotonic() + DEADLINE_S
        while left := self.processes():
            if time.monotonic() > deadline:
                names = [" ".join(p.cmdline()) for p in left]
                self.end()
                raise AssertionError(f"left behind: {names}")
            time.sleep(0.1)


def _tag(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.environ().get(TAG)
    except psutil.Error:
        return None


def at_random_round(
    command: Command, folder: Path, seed: int, first: int, last: int, run_id: str
) -> None:
    """Let `command` go on until a random moment after a random round of a run."""
    chance = random.Random(seed)
    number = chance.randint(first, last)
    command.until(lambda: committed(folder).get(run_id, -1) >= number)
    time.sleep(chance.random() * 0.2)
