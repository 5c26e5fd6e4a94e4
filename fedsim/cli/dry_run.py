"""What a study would do: its runs, where they would be placed, and the bytes they would send."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fedsim.cli.display import output
from fedsim.config import Experiment
from fedsim.driver.launch import unfinished
from fedsim.storage.remote import url_of


def describe(
    experiments: Sequence[Experiment],
    folder: Path,
    address: str | None,
    console: Console | None = None,
) -> None:
    """Print the plan; nothing is written but the shared cache of features and images.

    Raises:
        FedsimError: What would end the study before its first round.
    """
    from fedsim.inputs.preflight import preflight

    preflight(experiments)
    console = console or output()
    todo = unfinished(folder, experiments)
    count = len(experiments)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    into = url_of(folder) or folder
    say(
        f"{count} run{'s' * (count != 1)} into {into}: {count - len(todo)} finished, "
        f"{len(todo)} to do"
    )
    say(f"  partitions: {_listed(e.partition.label for e in experiments)}")
    say(f"  seeds: {_listed(e.seed for e in experiments)}")
    console.print(_table(experiments))
    say("up and down: bytes of one client per round; once: before its first round; total: one run")
    if experiments[0].engine.backend == "local":
        say("placement: all clients in this process (engine.backend: local)")
    else:
        say(f"placement: {_placement(todo or experiments[:1], address)}")


def _table(experiments: Sequence[Experiment]) -> Table:
    """One row for all runs of a method that send the same."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    for column in ("runs", "rounds", "clients", "up", "down", "once", "total"):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[tuple[str, ...], int] = {}
    measured: dict[str, tuple[int, int, int, int, int]] = {}
    for config in experiments:
        name = config.method if config.use == config.method else f"{config.method} ({config.use})"
        # What one client sends depends on neither split, seed nor learning rate.
        cache = (config.cache.init, config.cache.images_per_class)
        key = repr((name, config.models, cache, config.data, config.options, config.train.rounds))
        if key not in measured:
            measured[key] = _bytes(config)
        rounds, up, down, once, early = measured[key]
        cohort, num_clients = config.cohort_size, config.partition.num_clients
        total = cohort * (rounds * (up + down) + early) + once * _ever_sampled(config, rounds)
        clients = f"{cohort} of {num_clients}" if cohort < num_clients else str(num_clients)
        if up + down + once == 0:
            clients = "-"
        row = (name, str(rounds), clients, *map(_human, (up, down, once, total)))
        rows[row] = rows.get(row, 0) + 1
    for (name, *cells), number in rows.items():
        table.add_row(name, str(number), *cells)
    return table


def _ever_sampled(config: Experiment, rounds: int) -> int:
    """Clients that take part at least once, which download what is sent once."""
    from fedsim.engine.schedule import sample_cohort

    cohort, num_clients = config.cohort_size, config.partition.num_clients
    if cohort == num_clients:
        return num_clients if rounds else 0
    seen: set[int] = set()
    for number in range(1, rounds + 1):
        seen |= set(sample_cohort(num_clients, cohort, config.train_seed, number))
    return len(seen)


def _bytes(config: Experiment) -> tuple[int, int, int, int, int]:
    """Rounds, and bytes up, down, once and more at first, counted from one client's tensors."""
    from fedsim.driver.traffic import traffic

    t = traffic(config)
    return t.num_rounds, t.up, t.down, t.once, t.early


def _placement(experiments: Sequence[Experiment], address: str | None) -> str:
    """The sum of the first of these runs, once all of them have a place."""
    from fedsim.cluster.gpu_memory import smallest_gpu_bytes
    from fedsim.cluster.placement import Node, place, plans_memory

    memory = plans_memory(experiments)
    if address or "RAY_ADDRESS" in os.environ:
        from fedsim.cluster.session import nodes, session

        with session(address):
            machines = nodes(memory)
    else:
        gpus = _local_gpus()
        each = smallest_gpu_bytes() if memory and gpus else None
        machines = [Node(os.cpu_count() or 1, gpus, each)]
    placements = [place(e, machines, len(experiments)) for e in experiments]
    return placements[0].arithmetic


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _human(num_bytes: int) -> str:
    from fedsim.results.report.numbers import human_bytes

    return human_bytes(num_bytes) if num_bytes else "-"
