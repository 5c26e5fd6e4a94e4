"""Where runs are sent, and how long Ray stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedsim.cluster import remote_preflight, session, sweep
from fedsim.cluster.placement import Node
from fedsim.cluster.session import Stop
from fedsim.config import Experiment
from fedsim.config.tune import EarlyStopping
from fedsim.driver.launch import Launcher
from fedsim.errors import ConfigError
from tests.helpers import experiment


class Ray:
    """Stands in for Ray, and notes what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.stop = Stop()
        monkeypatch.setattr(session, "session", self.session)
        monkeypatch.setattr(session, "nodes", lambda memory: [Node(cpus=2)])
        monkeypatch.setattr(remote_preflight, "preflight_on_ray", lambda *_: None)
        monkeypatch.setattr(sweep, "sweep_on_ray", self.sweep)

    @contextmanager
    def session(self, address: str | None) -> Iterator[Stop]:
        self.said.append(f"start {address}")
        yield self.stop
        self.said.append("end")

    def sweep(self, group: list[Experiment], *_: object) -> None:
        self.said.append(" ".join(str(e.seed) for e in group))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return Ray(monkeypatch)


def runs(*seeds: int, **settings: object) -> list[Experiment]:
    return [experiment("x.npz", seed=seed, engine__backend="ray", **settings) for seed in seeds]


def silent(run_id: str, seen: dict[str, object]) -> None:
    """Hears nothing."""


def test_ray_stays_from_one_batch_to_the_next(ray: Ray, tmp_path: Path):
    with Launcher(tmp_path, "auto") as launcher:
        assert ray.said == []  # started with the first runs, not before
        launcher.run(runs(0, 1), silent)
        launcher.run(runs(2, 3), silent)
    assert ray.said == ["start auto", "0 1", "2 3", "end"]


def test_runs_of_one_shape_share_a_sweep(ray: Ray, tmp_path: Path):
    of_two_shapes = runs(0, 1) + runs(2, 3, resources__num_actors=2)
    with Launcher(tmp_path) as launcher:
        launcher.run(of_two_shapes, silent)
    assert ray.said == ["start None", "0 1", "2 3", "end"]


def test_a_stop_between_two_batches_is_heeded(ray: Ray, tmp_path: Path):
    def begin_and_stop() -> None:
        launcher.run(runs(0, 1), silent)
        ray.stop.requested = "SIGINT"

    with Launcher(tmp_path) as launcher:
        begin_and_stop()
        with pytest.raises(KeyboardInterrupt):
            launcher.run(runs(2, 3), silent)
        ray.stop.requested = None
    assert ray.said == ["start None", "0 1", "end"]
    with pytest.raises(KeyboardInterrupt), Launcher(tmp_path) as launcher:
        begin_and_stop()  # and no batch comes after


def test_what_no_backend_can_do_is_refused(ray: Ray, tmp_path: Path):
    here = [experiment("x.npz", engine__backend="local")]
    with Launcher(tmp_path / "study") as launcher:
        with pytest.raises(ConfigError, match="the same, ray or local"):
            launcher.run(runs(0) + here, silent)
        with pytest.raises(ConfigError, match="early_stopping to null"):
            launcher.run(here, silent, early_stopping=EarlyStopping())
    assert ray.said == []
    assert not (tmp_path / "study").exists()
