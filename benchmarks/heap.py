"""What keeping freed memory saves: CPU seconds and page faults of small networks' steps.

    python benchmarks/heap.py

Each measurement is a process of its own; with and without take turns, and medians are shown.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.progress import track
from rich.table import Table

from fedsim.cli.display import output
from fedsim.config.classifier import ClassifierConfig
from fedsim.models.cache import cache_logits
from fedsim.models.classifiers import Classifier
from fedsim.process import describe_machine, keep_freed_memory

_WARM, _TIMES = 5, 40


def steps() -> dict[str, Callable[[], None]]:
    """What is measured, ready to be called again and again."""
    rng = torch.Generator().manual_seed(0)
    net = Classifier(ClassifierConfig(name="convnet", depth=3, width=16), (1, 28, 28), 10)
    weights = net.init(rng)
    stacked = {k: v.expand(5, *v.shape).clone().requires_grad_() for k, v in weights.items()}
    x, y = torch.randn(5, 32, 1, 28, 28, generator=rng), torch.randint(10, (160,), generator=rng)
    test = torch.randn(1000, 1, 28, 28, generator=rng)
    keys = torch.randn(1, 1600, 1024, generator=rng).requires_grad_()
    values, f = F.one_hot(torch.arange(1600) // 16).float(), torch.randn(1, 32, 1024, generator=rng)

    def train() -> None:
        F.cross_entropy(net.on_clients(stacked, x).flatten(0, 1), y).backward()

    @torch.no_grad()
    def evaluate() -> None:
        net(weights, test)

    def cache() -> None:
        keys.grad = None
        scores = cache_logits(F.normalize(f, dim=-1), F.normalize(keys, dim=-1), values, 5.0)
        F.cross_entropy(scores[0], y[:32]).backward()

    return {
        "convnet, 5 clients x 32 images, a step": train,
        "convnet, 1,000 test images": evaluate,
        "cache of 1,600 x 1,024 keys, a step": cache,
    }


def measure(keep: bool) -> dict[str, tuple[float, int]]:
    """CPU milliseconds and page faults of each, per call."""
    torch.set_num_threads(1)
    if keep:
        assert keep_freed_memory(), "this C library has no mallopt, or MALLOC_* is set"
    found = {}
    for name, step in steps().items():
        for _ in range(_WARM):
            step()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(_TIMES):
            step()
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        found[name] = (1e3 * spent / _TIMES, (after.ru_minflt - before.ru_minflt) // _TIMES)
    return found


def main(repeats: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Measure, and print the table."""
    found: dict[bool, list[dict[str, tuple[float, int]]]] = {False: [], True: []}
    spawn = multiprocessing.get_context("spawn")
    for keep in track([False, True] * repeats, "measuring"):
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            found[keep].append(process.submit(measure, keep).result())
    table = Table(title=f"{describe_machine()['cpu_name']}, torch {torch.__version__}")
    for column in ("", "given back: ms", "page faults", "kept: ms", "page faults", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name in found[True][0]:
        cells: list[str] = []
        medians = []
        for runs in found.values():
            medians.append(statistics.median(run[name][0] for run in runs))
            faults = statistics.median(run[name][1] for run in runs)
            cells += [f"{medians[-1]:.1f}", f"{faults:,.0f}"]
        table.add_row(name, *cells, f"{medians[0] / medians[1]:.2f}")
    output().print(table)


if __name__ == "__main__":
    typer.run(main)
