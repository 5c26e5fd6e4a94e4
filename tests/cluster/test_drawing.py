"""Client actors draw the synthetic set: who draws what, and what happens when one dies.

Ray itself is replaced (`fakes.py`); what real actors do with a call is `ClientActor`, called
directly.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayTaskError

from fedsim.cluster import pool as pool_module
from fedsim.cluster.client import ClientActor
from fedsim.cluster.placement import Placement
from fedsim.cluster.pool import ActorPool
from fedsim.errors import ExecutionError, ModelError
from fedsim.inputs import draw_images
from fedsim.inputs.draw_images import Job, Recipe
from tests.cluster.fakes import FakeRay, Remote
from tests.helpers import experiment

RECIPE = Recipe("big")
JOBS = [Job(n, (f"prompt {n}",), (n,)) for n in range(7)]


class FakeActor:
    def __init__(self, position: int, log: list[tuple[int, int]], faults: dict[int, Any]) -> None:
        self.position, self.log, self.faults, self.released = position, log, faults, 0
        self.draw, self.stop_drawing = Remote(self._draw), Remote(self._release)
        self.stop_drawing.remote = self._release  # type: ignore[method-assign]
        self.where = Remote(lambda: {"node_id": "here"})

    def _draw(self, config: Any, recipe: Recipe, job: Job) -> np.ndarray:
        assert recipe == RECIPE
        self.log.append((self.position, job.number))
        fault = self.faults.pop(job.number, None)
        if fault is not None:
            raise fault
        return np.full((1, 2, 2, 3), job.number, np.uint8)

    def _release(self) -> None:
        self.released += 1


@pytest.fixture
def log() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def faults() -> dict[int, Any]:
    return {}


@pytest.fixture
def pool(
    monkeypatch: pytest.MonkeyPatch, log: list[tuple[int, int]], faults: dict[int, Any]
) -> ActorPool:
    monkeypatch.setattr(pool_module, "ray", FakeRay())
    monkeypatch.setattr(ActorPool, "_start", lambda self, at: FakeActor(at, log, faults))
    made = ActorPool(Placement({}, ({}, {}, {}), (0, 1, 2), 1, 0, 1, ""), None)  # type: ignore[arg-type]
    made.config = experiment("x.npz")
    return made


def numbers(drawn: Iterator[tuple[int, np.ndarray]]) -> list[int]:
    found = []
    for number, images in drawn:
        assert (images == number).all()
        found.append(number)
    return sorted(found)


def test_every_job_is_drawn_once_and_all_actors_draw(pool: ActorPool, log: list[tuple[int, int]]):
    assert numbers(pool.draw(RECIPE, JOBS)) == list(range(7))
    assert sorted(number for _, number in log) == list(range(7))
    assert {position for position, _ in log} == {0, 1, 2}
    assert [actor.released for actor in pool._actors] == [1, 1, 1]
    assert numbers(pool.draw(RECIPE, [])) == []
    assert numbers(pool.draw(RECIPE, JOBS[:2])) == [0, 1]  # fewer than actors


def test_a_dead_actor_is_replaced_and_its_batch_drawn_again(
    pool: ActorPool, log: list[tuple[int, int]], faults: dict[int, Any]
):
    faults |= {2: RayActorError(), 5: RayActorError()}
    assert numbers(pool.draw(RECIPE, JOBS)) == list(range(7))
    assert len(log) == 9
    assert [kind for kind, _ in pool.take_events()].count("actor_lost") == 2
    assert pool.num_actors == 3


def test_actors_that_keep_dying_end_the_run(pool: ActorPool, faults: dict[int, Any]):
    faults |= {n: RayActorError() for n in range(7)}
    with pytest.raises(ExecutionError, match="died 7 times"):
        numbers(pool.draw(RECIPE, JOBS))


def test_what_a_generator_refuses_is_told_as_it_is(pool: ActorPool, faults: dict[int, Any]):
    cause = ModelError("no such generator")
    faults[3] = RayTaskError("draw", "traceback", cause)
    with pytest.raises(ModelError, match="no such generator"):
        numbers(pool.draw(RECIPE, JOBS))
    assert all(actor.released == 1 for actor in pool._actors)
    faults[3] = RayTaskError("draw", "traceback", RuntimeError("boom"))
    with pytest.raises(ExecutionError, match="drawing images failed"):
        numbers(pool.draw(RECIPE, JOBS))


def test_an_actor_keeps_its_generator_until_it_is_told(monkeypatch: pytest.MonkeyPatch):
    loads = []

    class Fake:
        def at(self, *settings: Any) -> Any:
            return self

        def generate(self, prompts: Sequence[str], *args: Any) -> np.ndarray:
            return np.zeros((len(prompts), 2, 2, 3), np.uint8)

    def load(spec: str, device: str) -> Fake:
        loads.append((spec, device))
        return Fake()

    monkeypatch.setattr(draw_images, "load_generator", load)
    actor, config = ClientActor(0), experiment("x.npz")
    for job in JOBS[:2]:
        assert actor.draw(config, RECIPE, job).shape == (1, 2, 2, 3)
    assert loads == [("big", "cpu")]
    actor.stop_drawing()
    actor.stop_drawing()
    actor.draw(config, RECIPE, JOBS[0])
    assert len(loads) == 2
