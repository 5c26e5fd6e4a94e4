"""The plan of a study: its runs, where they would be placed, and the bytes they would send."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedsim.cli.display import output
from fedsim.config import Experiment
from fedsim.config.study_file import StudyFile
from fedsim.driver.data_checks import check_data
from fedsim.driver.plan import unfinished
from fedsim.interrupt import check
from fedsim.storage.remote import Copy, local_folder, url_of


def describe(
    experiments: Sequence[Experiment],
    folder: Path,
    address: str | None,
    console: Console | None = None,
) -> None:
    """Print the plan; only the shared cache of features and images is written.

    Raises:
        FedsimError: An error that would end the study before its first round.
    """
    from fedsim.inputs.preflight import preflight

    check_data(experiments)
    check()
    seen = local_folder(url_of(folder) or folder, reading=True)
    Copy(seen).pull()
    preflight(experiments)
    console = console or output()
    todo = unfinished(seen, experiments)
    count = len(experiments)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    done = f"{count - len(todo)} finished, {len(todo)} to do"
    say(f"{count} run{'s' * (count != 1)} into {url_of(seen) or seen}: {done}")
    say(f"  partitions: {_listed(e.partition.label for e in experiments)}")
    say(f"  seeds: {_listed(e.seed for e in experiments)}")
    console.print(_table(experiments))
    say("up and down: bytes of one client per round; once: before its first round; total: one run")
    if experiments[0].engine.backend == "local":
        say("placement: all clients in this process (engine.backend: local)")
    else:
        say(f"placement: {_placement(todo or experiments[:1], address)}")


def describe_tuning(study: StudyFile, address: str | None) -> None:
    """Print the plan of the first trials; nothing is chosen.

    Raises:
        FedsimError: See `describe`.
    """
    from fedsim.driver.tuning import first_trials

    describe(first_trials(study), study.folder, address)
    typer.echo(f"ranges with the best at an edge: up to {study.tune.extensions} times more")


def _table(experiments: Sequence[Experiment]) -> Table:
    """One row for all runs of a method that send the same number of bytes."""
    from fedsim.driver.traffic import Traffic, traffic
    from fedsim.results.report.numbers import human_bytes

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    for column in ("runs", "rounds", "clients", "up", "down", "once", "total"):
        table.add_column(column, justify="right", no_wrap=True)
    rows: Counter[tuple[str, ...]] = Counter()
    measured: dict[str, Traffic] = {}
    for config in experiments:
        name = config.method if config.use == config.method else f"{config.method} ({config.use})"
        # What one client sends depends on neither split, seed nor learning rate.
        cache = (config.cache.init, config.cache.images_per_class)
        key = repr((name, config.models, cache, config.data, config.options, config.train.rounds))
        if key not in measured:
            measured[key] = traffic(config)
        sent, cohort, num_clients = measured[key], config.cohort_size, config.partition.num_clients
        total = sent.of_a_run(num_clients, cohort, config.train_seed)
        clients = f"{cohort} of {num_clients}" if cohort < num_clients else str(num_clients)
        if sent.up + sent.down + sent.once == 0:
            clients = "-"
        sizes = (human_bytes(n) if n else "-" for n in (sent.up, sent.down, sent.once, total))
        rows[(name, str(sent.num_rounds), clients, *sizes)] += 1
    for (name, *cells), number in rows.items():
        table.add_row(name, str(number), *cells)
    return table


def _placement(experiments: Sequence[Experiment], address: str | None) -> str:
    """The first run's placement in words, after all runs have been placed."""
    import torch

    from fedsim.cluster.gpu_memory import smallest_gpu_bytes
    from fedsim.cluster.placement import Node, place_each, plans_memory

    memory = plans_memory(e.resources for e in experiments)
    if address or "RAY_ADDRESS" in os.environ:
        from fedsim.cluster.session import nodes, session

        with session(address):
            machines = nodes(memory)
    else:
        gpus = torch.cuda.device_count()
        each = smallest_gpu_bytes() if memory and gpus else None
        machines = [Node(os.cpu_count() or 1, gpus, each)]
    return place_each(experiments, machines)[0].arithmetic


def _listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
