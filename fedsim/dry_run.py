"""What a study would do: its runs, where they would be placed, and the bytes they would send."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedsim.config import Experiment
from fedsim.launch import unfinished


def describe(experiments: Sequence[Experiment], folder: Path, address: str | None) -> None:
    """Print the plan; nothing is written but the shared cache of features and images."""
    console = Console()
    todo = unfinished(folder, experiments)
    console.print(
        f"{len(experiments)} runs into {folder}: {len(experiments) - len(todo)} finished, "
        f"{len(todo)} to do",
        markup=False,
    )
    table = Table(title="Runs, and bytes per client")
    for column in ("method", "uses", "partitions", "seeds", "rounds"):
        table.add_column(column)
    for column in ("up / round", "down / round", "once", "total / run"):
        table.add_column(column, justify="right")
    for method in dict.fromkeys(e.method for e in experiments):
        mine = [e for e in experiments if e.method == method]
        partitions = dict.fromkeys(e.partition.label for e in mine)
        seeds = dict.fromkeys(str(e.seed) for e in mine)
        rounds, *sizes = _bytes(mine[0])
        cells = [method, mine[0].use, ", ".join(partitions), ", ".join(seeds), str(rounds)]
        table.add_row(*cells, *map(_human, sizes))
    console.print(table)
    if experiments[0].engine.backend == "local":
        console.print("placement: all clients in this process (engine.backend: local)")
        return
    console.print(f"placement: {_placement(experiments, len(todo), address)}", markup=False)


def _bytes(config: Experiment) -> tuple[int, int, int, int, int]:
    """Rounds, and bytes up, down, once and in total, counted from the tensors of one client."""
    from fedsim.engine.traffic import traffic

    t = traffic(config)
    cohort = config.cohort_size
    total = t.num_rounds * cohort * (t.up + t.down) + t.once * cohort
    return t.num_rounds, t.up, t.down, t.once, total


def _placement(experiments: Sequence[Experiment], num_runs: int, address: str | None) -> str:
    from fedsim.cluster.placement import Node, place

    if address or "RAY_ADDRESS" in os.environ:
        from fedsim.cluster.session import nodes, session

        with session(address):
            machines = nodes()
    else:
        machines = [Node(cpus=os.cpu_count() or 1, gpus=_local_gpus())]
    return place(experiments[0], machines, max(1, num_runs)).arithmetic


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _human(num_bytes: int) -> str:
    size, unit = float(num_bytes), 0
    while size >= 1024 and unit < 4:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
