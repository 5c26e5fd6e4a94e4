"""What FedDGM's distillation costs the server: seconds and peak memory per client.

    python benchmarks/distillation.py
    python benchmarks/distillation.py --device cuda --profile

The first row is `feddgm` of experiments/feddgm_mnist, the others change one thing each. Every
measurement is a process of its own; rows take turns, and medians are shown. A client's seconds are
those of everything but its latent steps, measured, and `latent_steps` times those of one step.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from rich.table import Table
from torch.profiler import profile

from fedsim.cli.display import output
from fedsim.config import Experiment
from fedsim.config.study_file import load_study
from fedsim.distill.client_sets import ClientMove, Distillation, distil
from fedsim.distill.priors.load import image_priors, prompts_of
from fedsim.methods import METHODS
from fedsim.models.classifiers import Classifier
from fedsim.params import Params
from fedsim.process import describe_machine
from fedsim.seeding import torch_rng

STUDY = Path(__file__).parents[1] / "experiments" / "feddgm_mnist" / "feddgm_mnist.yaml"

OURS: dict[str, Any] = {"distill.loss": "gradient", "distill.latent_steps": 120}
ROWS: dict[str, dict[str, Any]] = {
    "the study's": {},
    "1 client at a time": {"distill.clients_at_once": 1},
    "1 client, decoder fine-tuned": {"distill.clients_at_once": 1, "distill.generator_lr": 0.0001},
    "10 clients together": {"distill.clients_at_once": 10},
    "gradient matching": {"distill.loss": "gradient"},
    "feddgm_averaged: 120 gradients": OURS,
    "the same, 1 client at a time": OURS | {"distill.clients_at_once": 1},
    "1 image per class": {"distill.images_per_class": 1},
    "10 images per class": {"distill.images_per_class": 10},
    "20 student steps": {"distill.student_steps": 20},
    "exact gradient": {"distill.gradient": "unroll"},
    "prior: pixels": {"distill.prior": "pixels"},
    "surrogate: width 128": {"models.classifier": {"name": "convnet", "depth": 3, "width": 128}},
    "surrogate: lenet": {"models.classifier": "lenet"},
}
CLASSES_PER_CLIENT = 3  # about what Dirichlet 0.1 gives
STEPS = 3


def settings(row: str) -> Experiment:
    """The experiment that a row stands for."""
    study = load_study(STUDY)
    method = study.methods["feddgm"] | ROWS[row]
    changed = study.model_copy(update={"methods": {"feddgm": method}})
    return changed.resolve([("feddgm", {}, 0, "final")], METHODS)[0]


def work(config: Experiment, latent_steps: int, device: str) -> Distillation:
    """Clients whose moves are random: what they are does not change what they cost."""
    rng = torch_rng(0, "benchmark")
    shape = (1, 28, 28)
    net = Classifier(config.models.classifier, shape, 10)

    def source(client: int) -> ClientMove:
        start = net.init(rng)
        end: Params = {k: v + 0.01 * torch.randn(v.shape, generator=rng) for k, v in start.items()}
        classes = tuple(sorted(torch.randperm(10, generator=rng)[:CLASSES_PER_CLIENT].tolist()))
        return ClientMove(client, ((start, end),), classes)

    clients = tuple(source(client) for client in range(config.distill.clients_at_once))
    distill = config.distill.model_copy(
        update={"latent_steps": latent_steps, "student_lr": 0.01, "student_lr_lr": 0.0}
    )
    names, templates = config.data.classnames or (), config.data.templates
    prompts = prompts_of(distill, config.synthetic, config.models, templates, names)
    priors = image_priors(distill, prompts, shape, device)
    return Distillation(clients, net, distill, *priors, 0, 1, device)


def measure(row: str, device: str) -> tuple[float, float]:
    """Seconds per client, and the process's peak memory in MiB (on a GPU: what torch allocated)."""
    config = settings(row)
    distil(work(config, 1, device))  # loads the prior
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    took = [_seconds(work(config, steps, device)) for steps in (0, STEPS)]
    step = (took[1] - took[0]) / STEPS
    seconds = (took[0] + config.distill.latent_steps * step) / config.distill.clients_at_once
    if device != "cpu":
        return seconds, torch.cuda.max_memory_allocated() / 2**20
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _seconds(item: Distillation) -> float:
    started = time.perf_counter()
    distil(item)
    return time.perf_counter() - started


def _alone(row: str, device: str) -> tuple[float, float]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(measure, row, device).result()


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    shown: Annotated[bool, typer.Option("--profile", help="where the study's time goes")] = False,
) -> None:
    """Measure, and print the table."""
    found: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    for row in track([*ROWS] * repeats, "measuring"):
        found[row].append(_alone(row, device))
    seconds = {row: statistics.median(s for s, _ in values) for row, values in found.items()}
    first = seconds["the study's"]
    config = settings("the study's")
    machine = describe_machine()
    where = machine["cpu_name"] if device == "cpu" else machine["gpu_name"]
    title = f"{config.distill.latent_steps} latent steps; {where}, torch {torch.__version__}"
    table = Table(title=title)
    for column in ("setting", "s per client", "s per 10 clients", "relative", "peak MiB"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for row, values in found.items():
        memory = statistics.median(m for _, m in values)
        each = seconds[row]
        table.add_row(
            row, f"{each:.2f}", f"{10 * each:.0f}", f"{each / first:.2f}", f"{memory:.0f}"
        )
    output().print(table)
    if shown:
        item = work(config, STEPS, device)
        with profile() as profiled:
            distil(item)
        averages = profiled.key_averages()
        by = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
        print(averages.table(sort_by=by, row_limit=10, max_name_column_width=40))


if __name__ == "__main__":
    typer.run(main)
