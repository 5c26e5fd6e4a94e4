"""What clients cost that do not take part, and what those cost that do: seconds per round.

    python benchmarks/population.py

Runs of `fedsim` with clients that return what they were sent (noop.py), so that all there is to
measure is the simulator. Populations of 1,000 to 1,000,000 with the same cohort, and cohorts of
100 to 10,000 of the largest one. Runs take turns; a round is the time between two commits, tables
and checkpoint included, and medians of all rounds but the first are shown.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from rich.progress import track
from rich.table import Table

import fedsim
from fedsim.engine.machine import describe_machine
from fedsim.progress import output

HERE = Path(__file__).parent
COHORT, LARGEST = 100, 1_000_000
ROWS = [
    *((n, COHORT) for n in (1_000, 10_000, 100_000, LARGEST)),
    *((LARGEST, cohort) for cohort in (1_000, 10_000)),
]
SAMPLES, CLASSES, DIM = 20_000, 10, 64


def write_data(folder: Path) -> Path:
    """Features without meaning: nothing is learnt here."""
    rng = np.random.default_rng(0)
    arrays = {"text_features": rng.normal(size=(CLASSES, DIM)).astype(np.float32)}
    for split, count in (("train", SAMPLES), ("val", 100), ("test", 100)):
        arrays[f"x_{split}"] = rng.normal(size=(count, DIM)).astype(np.float32)
        arrays[f"y_{split}"] = np.arange(count) % CLASSES
    path = folder / "features.npz"
    np.savez(path, classnames=np.array([f"class {c}" for c in range(CLASSES)]), **arrays)
    return path


def write_study(folder: Path, clients: int, cohort: int, rounds: int, backend: str) -> Path:
    """One run; its seed says which repetition it is."""
    study = {
        "study": f"population-{clients}-{cohort}",
        "output": str(folder / "runs"),
        "data": {"name": str(write_data(folder))},
        "models": {"clip": None, "generator": None, "logit_scale": 10.0},
        "partition": {
            "scheme": "dirichlet_drawn",
            "num_clients": clients,
            "dirichlet_alpha": 0.1,
            "samples_per_client": 64,
            "size_sigma": 0.5,
        },
        "train": {"rounds": rounds, "cohort_size": cohort, "batch_size": 10},
        "engine": {"backend": backend, "group_size": 10},
        "evaluation": {"client_metrics": False},
        "methods": {"noop": {"use": f"{HERE / 'noop.py'}:NoOp"}},
    }
    path = folder / f"population-{clients}-{cohort}.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def measure(
    folder: Path, row: tuple[int, int], rounds: int, backend: str, seed: int
) -> list[float]:
    """Seconds of every round but the first."""
    path = write_study(folder, *row, rounds, backend)
    command = [sys.executable, "-m", "fedsim", "run", str(path), f"seed={seed}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    study = fedsim.load(folder / "runs" / path.stem)
    own = study.runs.run_id[study.runs.seed == seed].item()
    times = study.rounds[study.rounds.run_id == own].sort_values("round")["time"]
    return [gap.total_seconds() for gap in times.diff()[2:]]


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    rounds: Annotated[int, typer.Option(min=3)] = 8,
    backend: Annotated[str, typer.Option(help="ray or local")] = "ray",
) -> None:
    """Measure, and print the table."""
    found: dict[tuple[int, int], list[float]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as name:
        turns = [(row, seed) for seed in range(repeats) for row in ROWS]
        for row, seed in track(turns, "measuring"):
            found[row].append(statistics.median(measure(Path(name), row, rounds, backend, seed)))
    machine = describe_machine()
    table = Table(title=f"{backend} backend; {machine['cpu_name']}, {repeats} runs each")
    for column in ("clients", "cohort", "s per round", "spread", "ms per client", "relative"):
        table.add_column(column, justify="right")
    first = statistics.median(found[ROWS[0]])
    for (clients, cohort), values in found.items():
        each = statistics.median(values)
        table.add_row(
            f"{clients:,}",
            f"{cohort:,}",
            f"{each:.3f}",
            f"{min(values):.3f} to {max(values):.3f}",
            f"{1000 * each / cohort:.2f}",
            f"{each / first:.2f}" if cohort == COHORT else "",
        )
    output().print(table)


if __name__ == "__main__":
    typer.run(main)
