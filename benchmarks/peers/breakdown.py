"""Where a client actor's time goes: one round's clients in this process, on one thread."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from fedsim.config.study_file import load_study
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.host import ClientHost, Done, Work
from fedsim.engine.local import LocalPool
from fedsim.engine.round import Federation
from fedsim.engine.sinks import open_sinks
from fedsim.methods import METHODS
from fedsim.params import Params


def breakdown(study: Path, repeats: int = 5, rows: int = 10) -> tuple[float, str]:
    """Train the clients of a workload's first round, several times.

    Args:
        study: The workload's study.
        repeats: Timed rounds, after one that warms up.
        rows: Operations to list.

    Returns:
        Median seconds of the round, and torch's table of its most expensive operations.
    """
    [config] = load_study(study).experiments(METHODS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sinks, snapshots = open_sinks(folder, config.run_id), CheckpointFolder(folder, "one")
        federation = Federation(config, sinks, snapshots, _Asking(config))
        federation.setup()
        try:
            federation.step()
        except _Asked as asked:
            work, message = asked.args
    host = ClientHost(config)
    host.train(work, message)
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        host.train(work, message)
        took.append(time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        host.train(work, message)
    table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows)
    return statistics.median(took), table


class _Asked(Exception):
    """Carries what clients were asked to do."""


class _Asking(LocalPool):
    def train(self, work: Work, message: Params) -> Iterator[Done]:
        raise _Asked(work, message)
