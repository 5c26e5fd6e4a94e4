"""Actors on a cluster: what they are to each other, and what happens when one dies."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, remove_placement_group

from fedsim.cluster.placement import Placement
from fedsim.cluster.pool import ActorPool
from fedsim.distill.client_sets import Distillation, distil
from fedsim.distill.distilled_set import SyntheticSet
from fedsim.driver.launch import Launcher
from fedsim.driver.plan import study_lock, unfinished
from fedsim.engine.local import drive
from fedsim.errors import DataError, ExecutionError
from fedsim.inputs.draw_images import Drawer, Job, Recipe
from fedsim.methods.shared import from_prior
from fedsim.process import settle_process
from fedsim.results.study import Study, load
from fedsim.results.tables.equality import equal_results
from tests.helpers import experiment, federation, run, write_features
from tests.integration.studies import experiments, local, run_all, write_study
from tests.methods.test_cachefl_dgm import config as on_features
from tests.methods.test_feddgm import config as on_images

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

METHOD = '''
import os
import signal
from contextlib import suppress
from pathlib import Path

from fedsim.methods.fedavg_head import FedAvgHead

DIED = Path(__file__).with_name("died")


class Mortal(FedAvgHead):
    """A process is killed once, in the middle of a round: a client actor's or the coordinator's."""

    calls = 0

    def client_update(self, message, batches, client_state, rng):
        self.at_work("client", 4)
        return super().client_update(message, batches, client_state, rng)

    def aggregate(self, state, received):
        self.at_work("server", 1)
        return super().aggregate(state, received)

    def at_work(self, who, calls):
        self.calls += 1
        if who == MORTAL and self.calls > calls:
            with suppress(FileExistsError):  # of two actors that come here at once, one dies
                DIED.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
'''


def mortal(folder: Path, who: str) -> tuple[Path, Path, Study]:
    """A study in which somebody dies, the file that says so, and what it is without a death."""
    (folder / "mortal.py").write_text(f"MORTAL = {who!r}\n{METHOD}")
    study = write_study(folder, methods={"mortal": {"use": str(folder / "mortal.py")}})
    died = folder / "died"
    died.touch()
    expected = local(study, folder / "local")
    died.unlink()
    return study, died, expected


def test_a_killed_client_actor_is_replaced_and_leaves_no_trace_in_results(
    tmp_path: Path, ray_cluster: None
):
    study, died, expected = mortal(tmp_path, "client")
    found = run_all(experiments(study, "resources.num_actors=2"), tmp_path / "ray")
    assert died.exists()
    assert equal_results(expected, found) == []
    event, *_ = found.events.itertuples()  # its replacement may start before the end, or not
    assert event.kind == "actor_lost"
    assert event.round >= 1
    assert "client actor" in event.message
    assert found.runs.status.tolist() == ["finished"]
    assert found.runs.bit_comparable.all()


def test_a_run_whose_coordinator_is_killed_goes_on_when_it_is_started_again(
    tmp_path: Path, ray_cluster: None
):
    study, died, expected = mortal(tmp_path, "server")
    todo = experiments(study, "resources.num_actors=2")
    with pytest.raises(ExecutionError, match="the coordinator actor died(.|\n)*fedsim resume"):
        run_all(todo, tmp_path / "ray")
    assert died.exists()
    assert load(tmp_path / "ray").runs.status.tolist() == ["interrupted"]
    found = run_all(todo, tmp_path / "ray")
    assert equal_results(expected, found) == []
    assert found.runs.num_resumes.tolist() == [1]


def test_a_sweep_goes_on_when_a_trials_actors_are_killed(tmp_path: Path, ray_cluster: None):
    (tmp_path / "mortal.py").write_text(f"MORTAL = 'server'\n{METHOD}")
    methods = {
        "mortal": {"use": str(tmp_path / "mortal.py")},
        "fedavg_head": None,
        "zero_shot": None,
        "cache_random": {"use": "cachefl", "cache.init": "random"},
    }
    study = write_study(tmp_path, methods=methods, seeds=[0, 1])
    died, folder = tmp_path / "died", tmp_path / "ray"
    died.touch()
    expected = local(study, tmp_path / "local")
    died.unlink()
    todo = experiments(study, "resources.num_actors=1")
    heard: list[tuple[str, str]] = []

    def hear(run_id: str, seen: dict[str, Any]) -> None:
        if seen.get("error"):
            heard.append((run_id, seen["error"]))

    with study_lock(folder), Launcher(folder) as launcher:
        launcher.run(todo, hear)
    assert died.exists()
    ((run_id, error),) = heard
    assert error.startswith("the trial's actor failed")
    runs = load(folder).runs
    lost = runs.run_id == run_id
    assert runs.method[lost].tolist() == ["mortal"]
    assert runs.status[lost].tolist() == ["interrupted"]
    assert set(runs.status[~lost]) == {"finished"}
    assert len(runs) == len(todo)
    assert [e.run_id for e in unfinished(folder, todo)] == runs.run_id[lost].tolist()
    assert equal_results(expected, run_all(unfinished(folder, todo), folder)) == []


def test_runs_of_two_shapes_in_one_sweep(tmp_path: Path, ray_cluster: None):
    methods = {
        "fedavg_head": {"resources.num_actors": 1},
        "cache_random": {"use": "cachefl", "cache.init": "random", "resources.num_actors": 2},
    }
    study = write_study(tmp_path, methods=methods, seeds=[0, 1])
    found = run_all(experiments(study), tmp_path / "ray")
    assert set(zip(found.runs.method, found.runs.num_actors, strict=True)) == {
        ("fedavg_head", 1),
        ("cache_random", 2),
    }
    assert equal_results(local(study, tmp_path / "local"), found) == []


@pytest.fixture
def pool(ray_cluster: None) -> Iterator[ActorPool]:
    """Two client actors without a run."""
    bundles = ({"CPU": 1.0}, {"CPU": 1.0})
    group = placement_group(list(bundles), "PACK")
    ray.get(group.ready())
    made = ActorPool(Placement({}, bundles, (0, 1), 1, 0, 1, ""), group)
    made.config = experiment("x.npz")
    yield made
    made.close()
    remove_placement_group(group)


def test_server_side_work_is_done_on_the_clients_actors_in_order(pool: ActorPool):
    pids = {actor["pid"] for actor in pool.where()}
    found = pool.map(_late_if_even, list(range(6)))
    assert [square for square, _ in found] == [0, 1, 4, 9, 16, 25]
    assert {pid for _, pid in found} == pids
    assert pool.map(_late_if_even, []) == []


def test_server_side_work_outlives_an_actor(pool: ActorPool, tmp_path: Path):
    assert pool.map(partial(_once_deadly, tmp_path / "died"), [1, 2, 3]) == [1, 4, 9]
    (kind, message), *_ = pool.take_events()
    assert kind == "actor_lost"
    assert "client actor" in message


def test_server_side_work_is_told_the_actors_device_also_after_their_death(pool: ActorPool):
    assert len(pool.where()) == 2
    for actor in pool._actors:
        ray.kill(actor)
        with suppress(RayActorError):
            while ray.get(actor.where.remote()):  # Ray kills when it gets to it
                pass
    assert pool.device == "cpu"
    assert [kind for kind, _ in pool.take_events()][:2] == ["actor_lost"] * 2
    assert {actor["device"] for actor in pool.where()} == {"cpu"}


def test_what_server_side_work_raises_is_raised(pool: ActorPool):
    with pytest.raises(DataError, match="number 2"):
        pool.map(_refuse_two, [1, 2, 3])
    with pytest.raises(ExecutionError, match="server-side work failed(.|\n)*ZeroDivisionError"):
        pool.map(_divide, [1, 0])


def test_actors_draw_what_this_process_draws(pool: ActorPool):
    settle_process(1)
    recipe = Recipe("tiny-diffusion", steps=2)
    jobs = [Job(n, ("a photo of a two",) * 2, (2 * n, 2 * n + 1)) for n in range(3)]
    found, expected = dict(pool.draw(recipe, jobs)), dict(Drawer()(recipe, jobs))
    assert sorted(found) == [0, 1, 2]
    assert all(np.array_equal(found[number], expected[number]) for number in found)


def test_actors_distil_what_this_process_distils(
    pool: ActorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both losses and both methods, each round with more work than one actor takes."""
    short = {"latent_steps": 3, "student_steps": 2, "images_per_class": 1, "clients_at_once": 2}
    for config in (
        on_images(distill__loss="trajectory"),
        on_images(distill__loss="gradient", distill__clients_at_once=2),
        on_features(write_features(tmp_path), distill=short, train__rounds=2),
    ):
        alone = tmp_path / config.run_id / "alone"
        run(config, alone)
        pool.config, signed = config, tmp_path / config.run_id / "signed"
        signed.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(from_prior, "distil", partial(_distil_and_sign, signed))
            one = federation(config, tmp_path / config.run_id / "actors", pool)
            one.executor = pool
            drive(one, lambda row: None)
        assert {path.name for path in signed.iterdir()} == {str(a["pid"]) for a in pool.where()}
        expected, found = (load(alone.with_name(name)) for name in ("alone", "actors"))
        assert equal_results(expected, found) == []
        assert set(found.synthetic["round"]) >= {1, 2}
        kept = found.synthetic_rounds().get(config.run_id, [])
        assert kept == ([1, 2] if config.use == "feddgm" else [])  # features have no images
        for number in kept:
            images = [study.synthetic_images(number).images for study in (expected, found)]
            assert np.array_equal(*images)


def _distil_and_sign(folder: Path, work: Distillation) -> list[SyntheticSet]:
    (folder / str(os.getpid())).touch()
    return distil(work)


def _late_if_even(n: int) -> tuple[int, int]:
    """The square, and which process made it."""
    time.sleep(0.1 * (n % 2 == 0))
    return n * n, os.getpid()


def _once_deadly(died: Path, n: int) -> int:
    if n == 2 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def _refuse_two(n: int) -> int:
    if n == 2:
        raise DataError("this is number 2")
    return n


def _divide(n: int) -> float:
    return 1 / n


def test_logical_gpus_without_a_device_compute_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    import torch

    from fedsim.cluster.client import device_of_actor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_actor(0) == device_of_actor(0.5) == "cpu"


def test_a_share_of_a_gpu_caps_what_its_process_may_take(monkeypatch: pytest.MonkeyPatch):
    import torch

    from fedsim.cluster.client import device_of_actor
    from fedsim.cluster.placement import MEMORY_HEADROOM

    caps: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
    assert [device_of_actor(gpus) for gpus in (0, 0.25, 1)] == ["cpu", "cuda", "cuda"]
    assert caps == [0.25 * MEMORY_HEADROOM]
