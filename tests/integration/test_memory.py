"""Memory that processes hold does not grow with rounds, nor with a sweep's trials."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from fedsim.cluster.placement import place_each
from fedsim.cluster.session import Stop, nodes
from fedsim.cluster.single_run import run_on_ray
from fedsim.driver.launch import Launcher
from fedsim.driver.plan import study_lock
from fedsim.engine.local import drive
from tests.helpers import experiment, federation, write_features
from tests.integration.studies import experiments, write_study

ROUNDS, TRIALS, WARM = 300, 110, 60
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


class Sizes:
    """Bytes that this process and every actor below it hold, time after time."""

    def __init__(self) -> None:
        self._bytes: dict[int, list[int]] = {}
        self._names: dict[int, set[str]] = {}  # a process is called by what it does

    def look(self) -> None:
        """Read them now."""
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                name = "driver" if process == me else process.name().split(".")[0][:14]
                if process != me and not name.startswith("ray::"):
                    continue
                self._bytes.setdefault(process.pid, []).append(process.memory_info().rss)
                self._names.setdefault(process.pid, set()).add(name)

    def slopes(self, times: int) -> dict[str, float]:
        """Slope of every process that was there nearly all of the times, by its names."""
        steady = {pid: held for pid, held in self._bytes.items() if len(held) > times - 10}
        return {f"{sorted(self._names[pid])} {pid}": slope(held) for pid, held in steady.items()}


def check(slopes: dict[str, float], *kinds: str) -> None:
    """Actors of each kind were watched, and none grows."""
    for kind in kinds:
        assert any(kind in name for name in slopes), sorted(slopes)
    assert {name: rate for name, rate in slopes.items() if rate >= LIMIT} == {}


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
    made, sizes = config(tmp_path), Sizes()
    (placement,) = place_each([made], nodes())
    run_on_ray(made, placement, tmp_path, Stop(), lambda seen: sizes.look())
    check(sizes.slopes(ROUNDS), "driver", "ray::Coordina", "ray::ClientAct")
    assert ray.is_initialized()


@pytest.mark.slow
@pytest.mark.ray
def test_of_a_sweeps_actors_and_of_their_driver(tmp_path: Path, ray_cluster: None):
    study = write_study(
        tmp_path,
        data={"name": str(write_features(tmp_path, num_classes=4, dim=4000))},
        methods={"fedavg_head": None},
        train={"rounds": 1, "batch_size": 4},
        resources={"num_actors": 1},
        seeds=list(range(TRIALS)),
    )
    sizes = Sizes()

    def hear(run_id: str, seen: dict[str, Any]) -> None:
        assert not seen.get("error")
        if seen.get("finished"):
            sizes.look()

    folder = tmp_path / "runs" / "small"
    with study_lock(folder), Launcher(folder) as launcher:
        launcher.run(experiments(study), hear)
    check(sizes.slopes(TRIALS), "driver", "ray::Cell", "ray::ClientAct")
