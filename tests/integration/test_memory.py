"""Memory that processes hold does not grow with rounds."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from fedsim.cluster.placement import place
from fedsim.cluster.run import run_on_ray
from fedsim.cluster.session import Stop, nodes
from fedsim.engine.local import drive
from tests.helpers import experiment, federation, write_features

ROUNDS, WARM = 300, 60
KIB = 1024
LIMIT = 64 * KIB
"""Bytes per round. Rows that are kept on purpose, and buffers that grow with them, are a few KiB;
one lost update of each client would be 375."""


def config(folder: Path):
    features = write_features(folder, num_classes=4, dim=4000)
    return experiment(
        features, "fedavg_head", train__rounds=ROUNDS, evaluation__client_metrics=False
    )


def slope(sizes: list[int]) -> float:
    """Bytes per round, least squares, after the first rounds."""
    kept = np.array(sizes[WARM:], dtype=float)
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0])


@pytest.mark.slow
def test_of_a_run_in_this_process(tmp_path: Path):
    sizes: list[int] = []
    me = psutil.Process()
    drive(federation(config(tmp_path), tmp_path), lambda row: sizes.append(me.memory_info().rss))
    assert len(sizes) == ROUNDS + 1
    assert slope(sizes) < LIMIT


@pytest.mark.slow
@pytest.mark.ray
def test_of_a_runs_actors_and_of_their_driver(tmp_path: Path, ray_cluster: None):
    made, sizes, me = config(tmp_path), dict[str, list[int]](), psutil.Process()

    def look(progress) -> None:
        found = {"driver": me.memory_info().rss}
        for child in me.children(recursive=True):
            name = child.name()
            if name.startswith("ray::"):
                found[f"{name.split('.')[0]} {child.pid}"] = child.memory_info().rss
        for name, size in found.items():
            sizes.setdefault(name, []).append(size)

    run_on_ray(made, place(made, nodes()), tmp_path, Stop(), look)
    steady = {name: values for name, values in sizes.items() if len(values) > ROUNDS - 10}
    kinds = {name.split()[0] for name in steady}
    assert {"driver", "ray::Coordinator", "ray::ClientActor"} <= kinds
    assert {name: rate for name, v in steady.items() if (rate := slope(v)) >= LIMIT} == {}
    assert ray.is_initialized()
