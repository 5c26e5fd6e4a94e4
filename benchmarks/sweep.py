"""A sweep of 200 short trials: trials per minute, what a trial costs beside its rounds, and a kill.

    python benchmarks/sweep.py

The trials of sweep.yaml (4 methods x 5 alphas x 10 seeds on digits) run through Ray twice: once
undisturbed, and once ended by `kill -9` when half of them have begun, and started again. Memory is
the PSS of all processes, Ray's own included. Linux only: it is read from /proc.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import psutil
import typer
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import fedsim
from benchmarks.peers.gauge import MARK, Gauge
from fedsim.cli.display import output
from fedsim.process import describe_machine

STUDY = Path(__file__).with_suffix(".yaml")
_EVERY_S, _LEAVE_S = 1.0, 20.0
Memory = list[tuple[int, float]]
"""Once per second: how many trials have begun, and MiB of all processes."""


def sweep(folder: Path, overrides: list[str], kill_at: int | None = None) -> tuple[float, Memory]:
    """Run the sweep to its end, or kill it when so many of its trials have begun.

    Returns:
        Seconds from the command to its end, and the memory meanwhile.
    """
    mark, began, memory = uuid.uuid4().hex, time.perf_counter(), Memory()
    gauge = Gauge(mark)  # asked for processes; it does not sample by itself
    command = [sys.executable, "-m", "fedsim", "sweep", str(STUDY), f"output={folder}", *overrides]
    process = subprocess.Popen(command, env=os.environ | {MARK: mark}, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        begun = len(list((folder / "sweep" / "runs").glob("*.parquet")))
        memory.append((begun, _pss_mib(gauge.living())))
        if kill_at is not None and begun >= kill_at:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EVERY_S)
    took = time.perf_counter() - began
    if kill_at is None and process.returncode:
        raise typer.Exit(process.returncode)
    for left in psutil.wait_procs(gauge.living(), timeout=_LEAVE_S)[1]:
        with contextlib.suppress(psutil.Error):
            left.kill()  # agents of Ray's, which do not notice that their driver was killed
    return took, memory


def _pss_mib(processes: list[psutil.Process]) -> float:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def trials(folder: Path) -> pd.DataFrame:
    """Finished trials, in the order in which they began, with the seconds of their rounds.

    `ready_at` is when the first round began, less what the evaluation before it took: a whole CLIP
    on the test images costs more than all the rest.
    """
    study = fedsim.load(folder / "sweep")
    columns = ["method", "started_at", "finished_at", "status"]
    runs = study.runs.set_index("run_id")[columns].query("status == 'finished'")
    rounds = study.rounds.set_index("run_id")
    first, before = (rounds[rounds["round"] == number] for number in (1, 0))
    begin = first["time"] - pd.to_timedelta(first["round_s"] + before["eval_s"], unit="s")
    rounds_s = rounds.groupby("run_id")[["round_s", "commit_s"]].sum().sum(axis=1)
    return runs.assign(rounds_s=rounds_s, ready_at=begin).sort_values("started_at")


def before_first_round(table: pd.DataFrame) -> pd.Series:
    """Seconds from a trial's end to where the next one on its actors is ready, by that one's id.

    The n-th trial to begin beyond those that run at once takes over from the n-th to end.
    """
    ends = table.finished_at.sort_values().array
    at_once = int((table.started_at < table.finished_at.min()).sum())
    ready = table.ready_at[at_once:]
    return pd.Series(ready.array - ends[: len(ready)], ready.index).dt.total_seconds()


def growth(memory: Memory, warm: int, last: int) -> tuple[float, float]:
    """MiB when `warm` trials had begun, and MiB per trial until `last` had (least squares)."""
    begun, mib = np.array([pair for pair in memory if warm <= pair[0] < last], dtype=float).T
    slope, level = np.polyfit(begun, mib, 1)
    return float(level + slope * warm), float(slope)


def _quantiles(seconds: pd.Series) -> str:
    return f"{seconds.median():.2f} (95 %: {seconds.quantile(0.95):.2f})"


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="as of `fedsim sweep`")] = None,
) -> None:
    """Measure, and print the table."""
    given = overrides or []
    with tempfile.TemporaryDirectory() as name:
        sweep(Path(name) / "features", [*given, "seeds=[0]", "methods=[fedavg_head]"])
        took, memory = sweep(Path(name) / "whole", given)
        whole = trials(Path(name) / "whole")
        gaps = before_first_round(whole)
        cut = Path(name) / "cut"
        until, _ = sweep(cut, given, kill_at=len(whole) // 2)
        half = trials(cut)
        again, _ = sweep(cut, given)
        both = trials(cut)
    kept = both.loc[half.index]
    same = bool((kept.finished_at == half.finished_at).all())
    warm = len(whole) // 2  # from then on trials are alike: keys of a cache are trained
    level, slope = growth(memory, warm, len(whole))
    lanes = len(whole) - len(gaps)
    machine = describe_machine()
    table = Table(title=f"{len(whole)} trials; {machine['cpu_name']}, {machine['num_cpus']} cores")
    table.add_column("measure")
    table.add_column("value", justify="right")
    active = (whole.finished_at.max() - whole.started_at.min()).total_seconds()
    rows = {
        "whole command, s": f"{took:.0f}",
        "trials at once": f"{lanes}",
        "trials per minute, whole command": f"{60 * len(whole) / took:.0f}",
        "trials per minute, from the first trial's begin": f"{60 * len(whole) / active:.0f}",
        "a trial's rounds, s (median)": f"{whole.rounds_s.median():.2f}",
        "a trial beside its rounds, s (mean)": (
            f"{lanes * active / len(whole) - whole.rounds_s.mean():.2f}"
        ),
        "end of a trial to the next one's first round, s": _quantiles(gaps),
        **{f"  the same, {name}": _quantiles(of) for name, of in gaps.groupby(whole.method)},
        f"memory of all processes after {warm} trials, MiB": f"{level:.0f}",
        "more per further trial, MiB": f"{slope:.3f}",
        "killed after, s": f"{until:.0f}",
        "finished by then": f"{len(half)}",
        "started again, s": f"{again:.0f}",
        "finished trials left as they were": f"{'all' if same else 'NOT ALL'} of {len(half)}",
        "finished in the end": f"{len(both)}",
    }
    for measure, value in rows.items():
        table.add_row(measure, value)
    output().print(table)


if __name__ == "__main__":
    typer.run(main)
