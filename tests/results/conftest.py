"""Small studies, written through TableWriter as a real run writes them."""

import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.results.study import Study, load
from fedsim.results.tables.writer import TableWriter

CLASSES = ["airplane", "cat", "dog", "ship", "truck"]
PARTITIONS = [("dirichlet", 0.05), ("dirichlet", 0.5), ("iid", None)]
# Accuracy before and after training under IID data, bytes per round, bytes of set-up.
METHODS: dict[str, tuple[float, float, int, int]] = {
    "zero_shot": (0.55, 0.55, 0, 0),
    "fedavg": (0.20, 0.78, 400_000, 0),
    "cachefl": (0.57, 0.84, 40_000, 300_000),
    "feddgm": (0.20, 0.80, 150_000, 500_000),
    "centralised": (0.20, 0.90, 0, 0),
}
StudyMaker = Callable[..., Study]


def write_run(
    folder: Path,
    method: str,
    partition: str,
    alpha: float | None,
    seed: int,
    num_rounds: int = 8,
    last_round: int | None = None,
    status: str = "finished",
    phase: str = "final",
    dataset: str = "shapes",
    num_clients: int = 6,
    shift: float = 0.0,
    config: dict[str, Any] | None = None,
    label: str | None = None,
    synthetic: Sequence[dict[str, Any]] = (),
    **columns: Any,
) -> str:
    """Write one run; `last_round` before `num_rounds` leaves it half-way. Returns its run id."""
    start, end, per_round, setup = METHODS.get(method, (0.3, 0.7, 100_000, 0))
    num_rounds = 0 if method == "zero_shot" else num_rounds
    end -= 0.0 if alpha is None or method in ("zero_shot", "centralised") else 0.03 / alpha**0.5
    name = "-".join(map(str, (method, dataset, partition, alpha, f"s{seed}", phase)))
    run_id = name + ("" if config is None else f"-{zlib.crc32(str(config).encode())}x")
    rng = np.random.default_rng([seed, zlib.crc32(method.encode()), int(100 * (alpha or 9))])
    data = np.random.default_rng([seed, int(100 * (alpha or 9))])
    with TableWriter(folder, run_id) as writer:
        settings: dict[str, Any] = {"method": {"name": method}, "train": {"lr": 0.1, "steps": 4}}
        writer.update_run(
            config=settings | {"seed": seed} | (config or {}),
            study=folder.name, method=method, dataset=dataset, partition_scheme=partition,
            partition=label or (partition if alpha is None else f"{partition} {alpha:g}"),
            pooled=method.startswith("centralised"), zero_shot=method == "zero_shot",
            dirichlet_alpha=alpha, num_clients=num_clients, seed=seed, status="running",
            phase=phase, num_rounds=num_rounds, started_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
            partition_total_variation=0.0 if alpha is None else 0.3 / (1 + alpha),
            partition_effective_classes=5.0 if alpha is None else 1.0 + alpha,
            partition_size_gini=0.1, fedsim_version="0.1.0", platform="Linux x86_64",
            python_version="3.11.7", cpu_name="Test processor", num_cpus=2, backend="local",
            device="cpu", **columns,
        )  # fmt: skip
        shares = data.dirichlet([alpha or 1000.0] * len(CLASSES), size=num_clients)
        counts = np.round(shares * 60).astype(int)
        writer.append(
            "clients",
            {"round": 0, "client_id": np.arange(num_clients), "status": "idle",
             "num_samples": counts.sum(axis=1), "label_counts": counts.tolist()},
        )  # fmt: skip
        if synthetic:
            writer.append("synthetic", synthetic)
        last = num_rounds if last_round is None else last_round
        for r in range(last + 1):
            rise = 1 - np.exp(-3.0 * r / max(num_rounds, 1))
            noise = 0.0 if method == "zero_shot" else rng.normal(0, 0.012)
            accuracy = float(np.clip(start + (end - start) * rise + noise * rise + shift, 0, 1))
            up, down = (0, setup) if r == 0 else (per_round // 2, per_round // 2)
            writer.append(
                "rounds",
                [{
                    "round": r, "accuracy": accuracy, "loss": float(-np.log(accuracy)),
                    "bytes_up": up, "bytes_down": down,
                    "train_flops": 0 if r == 0 else 10**9, "train_s": 0.1, "eval_s": 0.01,
                    "num_clients_ok": 0 if r == 0 else 3, "num_clients_failed": 0,
                }],
            )  # fmt: skip
            if r:
                rows = [{"round": r, "client_id": c, "status": "ok", "train_s": 0.1, "node": "n1"}
                        for c in range(3)]  # fmt: skip
                writer.append("clients", rows)
            values = np.clip(accuracy + 0.05 * (np.arange(len(CLASSES)) - 2), 0, 1)
            writer.append(
                "evaluations",
                {"round": r, "model": "global", "scope": "class", "class_name": CLASSES,
                 "split": "test", "metric": "accuracy", "value": values},
            )  # fmt: skip
        if last == num_rounds:
            writer.append(
                "predictions",
                {"round": last, "split": "test", "sample": np.arange(20), "label": 1,
                 "prediction": np.arange(20) % 2, "correct": np.arange(20) % 2 == 1},
            )  # fmt: skip
        if status == "failed":
            row = {"round": last, "kind": "client_failed", "client_id": 2, "node": "n1"}
            row |= {"time": datetime.now(UTC), "message": "client 2 failed: <loss> is not finite"}
            writer.append("events", [row])
            writer.update_run(error="client 2 failed in round 3 on n1: loss is not finite")
        writer.update_run(status=status)
    return run_id


@pytest.fixture(scope="session")
def make_run() -> Callable[..., str]:
    return write_run


@pytest.fixture(scope="session")
def make_study() -> StudyMaker:
    def make(
        folder: Path,
        methods: Sequence[str] = tuple(METHODS),
        partitions: Sequence[tuple[str, float | None]] = tuple(PARTITIONS),
        seeds: Sequence[int] = (0, 1, 2, 3),
        **options: Any,
    ) -> Study:
        for method in methods:
            for partition, alpha in partitions:
                for seed in seeds:
                    write_run(folder, method, partition, alpha, seed, **options)
        return load(folder)

    return make


@pytest.fixture(scope="session")
def study(make_study: StudyMaker, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Five methods, three partitions, four seeds, and a synthetic set. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    made = make_study(folder)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, size=(20, 16, 16, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(5), 4)
    images[..., 0] = (labels * 50)[:, None, None]
    TableWriter(folder, "r").save_images("f00d", images, labels, CLASSES)
    return made
