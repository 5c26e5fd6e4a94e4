"""How rounds scale: clients per second against what a study can make larger.

    python benchmarks/scaling.py

Whole runs of `fedsim`, tables and checkpoints included, on features without meaning. Population and
cohort are measured with clients that return what they were sent (noop.py), so that all there is to
measure is the simulator; actors, feature dimension and cache size with clients that train a cache
for an epoch. Runs take turns; a round is the time between two commits, and each point is the median
over all rounds but the first, and over the repetitions. A table is printed, and drawn in
runs/scaling.png.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table

import fedsim
from fedsim.cli.display import output
from fedsim.process import describe_machine

HERE = Path(__file__).parent
SAMPLES, CLASSES, DIM = 20_000, 10, 64
SENT_BACK = {"use": f"{HERE / 'noop.py'}:NoOp"}
TRAINED = {"use": "cachefl", "cache.init": "random"}


@dataclass(frozen=True)
class Point:
    """One run's setting, and where it stands on its curve."""

    curve: str
    x: int
    clients: int = 1_000
    cohort: int = 100
    dim: int = 512
    per_class: int = 16
    actors: int | None = None
    idle: bool = False


def points() -> Iterator[Point]:
    """All of all curves."""
    for n in (1_000, 10_000, 100_000, 1_000_000):
        yield Point("population, clients", n, clients=n, dim=DIM, idle=True)
    for n in (100, 1_000, 10_000):
        yield Point("cohort, clients", n, 1_000_000, cohort=n, dim=DIM, idle=True)
    for n in (1, 2, 4):
        yield Point("client actors", n, actors=n)
    for n in (128, 256, 512, 1024):
        yield Point("feature dimension", n, dim=n)
    for n in (1, 4, 16, 64):
        yield Point("keys per class", n, per_class=n)


def write_data(folder: Path, dim: int) -> Path:
    """Features without meaning: nothing is learnt here."""
    path, rng = folder / f"features-{dim}.npz", np.random.default_rng(0)
    if not path.is_file():
        arrays = {"text_features": rng.normal(size=(CLASSES, dim)).astype(np.float32)}
        for split, count in (("train", SAMPLES), ("val", 100), ("test", 100)):
            arrays[f"x_{split}"] = rng.normal(size=(count, dim)).astype(np.float32)
            arrays[f"y_{split}"] = np.arange(count) % CLASSES
        np.savez(path, classnames=np.array([f"class {c}" for c in range(CLASSES)]), **arrays)
    return path


def write_study(folder: Path, point: Point, rounds: int, backend: str) -> Path:
    """One run; its seed says which repetition it is."""
    name = f"{point.curve.split(',')[0].replace(' ', '-')}-{point.x}"
    study = {
        "study": name,
        "output": str(folder / "runs"),
        "data": {"name": str(write_data(folder, point.dim))},
        "models": {"clip": None, "generator": None, "logit_scale": 10.0},
        "partition": {
            "scheme": "dirichlet_drawn",
            "num_clients": point.clients,
            "dirichlet_alpha": 0.1,
            "samples_per_client": 64,
            "size_sigma": 0.5,
        },
        "train": {"rounds": rounds, "cohort_size": point.cohort, "batch_size": 32},
        "cache": {"images_per_class": point.per_class},
        "engine": {"backend": backend, "group_size": 10},
        "evaluation": {"client_metrics": False, "personal": False},
        "methods": {"measured": SENT_BACK if point.idle else TRAINED},
    }
    if point.actors is not None:
        study["resources"] = {"num_actors": point.actors, "cpus_per_client": 0.25}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def measure(folder: Path, point: Point, rounds: int, backend: str, seed: int) -> float:
    """Median seconds of all rounds but the first."""
    path = write_study(folder, point, rounds, backend)
    command = [sys.executable, "-m", "fedsim", "run", str(path), f"seed={seed}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    study = fedsim.load(folder / "runs" / path.stem)
    own = study.runs.run_id[study.runs.seed == seed].item()
    times = study.rounds[study.rounds.run_id == own].sort_values("round")["time"]
    return statistics.median(gap.total_seconds() for gap in times.diff()[2:])


def draw(found: dict[Point, list[float]], title: str) -> Figure:
    """Clients per second, a panel per curve; bars from the slowest to the fastest run."""
    curves = list(dict.fromkeys(point.curve for point in found))
    figure = Figure(figsize=(2.6 * len(curves), 2.9), layout="constrained")
    for axis, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        own = {point: seconds for point, seconds in found.items() if point.curve == curve}
        speed = [[p.cohort / s for s in sorted(seconds)] for p, seconds in own.items()]
        middle = [statistics.median(each) for each in speed]
        reach = [
            [m - min(each) for m, each in zip(middle, speed, strict=True)],
            [max(each) - m for m, each in zip(middle, speed, strict=True)],
        ]
        axis.errorbar([p.x for p in own], middle, reach, marker="o", capsize=3, color="#0072B2")
        axis.set(xscale="log", xlabel=curve, ylim=(0, None))
        axis.set_xticks([p.x for p in own], [f"{p.x:,}" for p in own], minor=False)
        axis.set_xticks([], minor=True)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("clients per second")
    figure.suptitle(title, fontsize=9)
    return figure


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    rounds: Annotated[int, typer.Option(min=3)] = 8,
    backend: Annotated[str, typer.Option(help="ray or local")] = "ray",
    only: Annotated[str, typer.Option(help="part of a curve's name")] = "",
    picture: Path = Path("runs/scaling.png"),
) -> None:
    """Measure, print the table and draw the curves."""
    every = [p for p in points() if only in p.curve]
    turns = [(point, seed) for seed in range(repeats) for point in every]
    taken: list[list[float]] = [[] for _ in every]
    with tempfile.TemporaryDirectory() as name:
        for number, (point, seed) in enumerate(track(turns, "measuring")):
            taken[number % len(every)].append(measure(Path(name), point, rounds, backend, seed))
    machine = describe_machine()
    title = f"{backend} backend; {machine['cpu_name']}, {repeats} runs each"
    table = Table(title=title)
    for column in ("what grows", "to", "s per round", "spread", "ms per client", "clients per s"):
        table.add_column(column, justify="right")
    for point, values in zip(every, taken, strict=True):
        each = statistics.median(values)
        table.add_row(
            point.curve,
            f"{point.x:,}",
            f"{each:.3f}",
            f"{min(values):.3f} to {max(values):.3f}",
            f"{1000 * each / point.cohort:.2f}",
            f"{point.cohort / each:,.0f}",
        )
    output().print(table)
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(dict(zip(every, taken, strict=True)), title).savefig(picture, dpi=120)
    output().print(f"drawn in {picture}")


if __name__ == "__main__":
    typer.run(main)
