"""Actors on a cluster: what they are to each other, and what happens when one dies."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from fedsim.cluster.placement import Placement
from fedsim.cluster.pool import ActorPool
from fedsim.cluster.sweep import Gate
from fedsim.engine.draw import Drawer, Job, Recipe
from fedsim.engine.task import settle_process
from fedsim.errors import DataError, ExecutionError
from fedsim.results.equality import equal_results
from tests.helpers import experiment
from tests.integration.studies import experiments, local, run_all, write_study

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

MORTAL = '''
import os
import signal
from contextlib import suppress
from pathlib import Path

from fedsim.methods.fedavg_head import FedAvgHead

DIED = Path(__file__).with_name("died")


class Mortal(FedAvgHead):
    """Its process is killed once, in the middle of a round."""

    calls = 0

    def client_update(self, message, batches, client_state, rng):
        self.calls += 1
        if self.calls > 4:
            with suppress(FileExistsError):  # of two actors that come here at once, one dies
                DIED.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().client_update(message, batches, client_state, rng)
'''


def test_a_killed_client_actor_is_replaced_and_leaves_no_trace_in_results(
    tmp_path: Path, ray_cluster: None
):
    (tmp_path / "mortal.py").write_text(MORTAL)
    study = write_study(tmp_path, methods={"mortal": {"use": str(tmp_path / "mortal.py")}})
    died = tmp_path / "died"
    died.touch()
    expected = local(study, tmp_path / "local")
    died.unlink()
    found = run_all(experiments(study, "resources.num_actors=2"), tmp_path / "ray")
    assert died.exists()
    assert equal_results(expected, found) == []
    (event,) = found.events.itertuples()
    assert event.kind == "actor_lost"
    assert event.round >= 1
    assert "client actor" in event.message
    assert found.runs.status.tolist() == ["finished"]
    assert found.runs.bit_comparable.all()


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
    ((kind, message),) = pool.take_events()
    assert kind == "actor_lost"
    assert "client actor" in message


def test_server_side_work_is_told_the_actors_device_also_after_a_death(pool: ActorPool):
    ray.kill(pool._actors[0])
    assert pool.device == "cpu"
    assert [kind for kind, _ in pool.take_events()] == ["actor_lost"]
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


def test_the_gate_opens_when_all_have_arrived():
    gate = Gate(2)
    assert not gate.is_open()
    gate.arrive()
    assert not gate.is_open()
    gate.arrive()
    assert gate.is_open()


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
