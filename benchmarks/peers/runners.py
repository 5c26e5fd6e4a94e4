"""Who is compared, and one repetition of one of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.gauge import MARK, Gauge
from benchmarks.peers.stopwatch import PREFIX

ROOT = Path(__file__).parents[2]
_DEADLINE_S = 900.0
_QUIET, _QUIET_S = 12.0, 2
"""Less than so many percent of all cores in use, for so many seconds on end."""


@dataclass(frozen=True)
class Runner:
    """A way of running a workload: a module of this folder, in its own process."""

    name: str
    title: str
    peer: bool = True
    """It runs in the peers' environment."""
    arguments: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return f"benchmarks.peers.run_{self.name.partition('_')[0]}"


RUNNERS = {
    runner.name: runner
    for runner in (
        Runner("fedsim", "fedsim", peer=False),
        Runner("flower", "Flower"),
        Runner("pfl", "pfl-research"),
        Runner("loop", "plain loop"),
        # Only when asked for, with --runners:
        Runner("flower_fused", "Flower, fused optimiser", arguments=("fused",)),
        Runner("fedsim_local", "fedsim, one process", peer=False, arguments=("local",)),
    )
}


def run(
    runner: Runner, work: Path, weights: Path, log: Path, python: Path, patience_s: float
) -> dict[str, Any]:
    """One repetition in a process group of its own: what it said, and what it cost.

    Args:
        runner: Who.
        work: The workload's folder.
        weights: Where its final weights go, `.npz`.
        log: Where its output goes.
        python: Of the peers' environment.
        patience_s: How long to wait for an idle machine.
    """
    wait_until_quiet(patience_s)
    interpreter = str(python if runner.peer else Path(sys.executable))
    command = [interpreter, "-m", runner.module, str(work), str(weights), *runner.arguments]
    mark, prepared = uuid.uuid4().hex, tempfile.mkdtemp(prefix="peers-")
    environment = {
        **os.environ,
        MARK: mark,
        "PYTHONPATH": str(ROOT),
        "FEDSIM_CACHE": prepared,  # empty: every repetition is a cold one
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    environment.pop("OMP_NUM_THREADS", None)
    weights.unlink(missing_ok=True)
    gauge = Gauge(mark)
    with log.open("w") as output:
        started = time.time()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"PEERS_STARTED": repr(started)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        gauge.start()
        try:
            code: int | str = process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            code = f"no end after {_DEADLINE_S:g} s"
        finally:
            if process.poll() is None:  # also after Ctrl+C
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            wall = time.time() - started
            gauged = gauge.stop()
            _end(gauge)
            shutil.rmtree(prepared, ignore_errors=True)
    row = {"exit": code, "wall_s": round(wall, 2), **asdict(gauged)}
    said = [line for line in log.read_text().splitlines() if line.startswith(PREFIX)]
    if code == 0 and said and weights.is_file():
        return row | json.loads(said[-1].removeprefix(PREFIX))
    return row | {"error": f"it failed ({code}); see {log}"}


def torch_build(python: Path) -> str:
    """Version and commit of an environment's torch."""
    ask = "import torch; print(torch.__version__, torch.version.git_version)"
    return subprocess.check_output([str(python), "-c", ask], text=True).strip()


def wait_until_quiet(limit_s: float) -> None:
    """Wait for the machine to be idle for a moment, but not for ever."""
    deadline, quiet = time.monotonic() + limit_s, 0
    while quiet < _QUIET_S and time.monotonic() < deadline:
        quiet = quiet + 1 if psutil.cpu_percent(1.0) < _QUIET else 0


def _end(gauge: Gauge) -> None:
    """End what a runner left behind."""
    left = gauge.living()
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=5)
