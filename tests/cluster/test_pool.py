"""Client actors that are lost: who does their groups, and when they are given any again."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    OutOfMemoryError,
)

from fedsim.cluster import pool as pool_module
from fedsim.cluster.placement import Placement
from fedsim.cluster.pool import ActorPool
from fedsim.engine.batching import Group
from fedsim.engine.client_states import ClientState
from fedsim.engine.host import Done, Work
from fedsim.errors import ExecutionError
from fedsim.params import ExactSum
from tests.cluster.fakes import FakeRay, Remote
from tests.helpers import experiment

GROUPS = [Group(n, (n,), (np.arange(4),)) for n in range(6)]
STATES = {n: ClientState({"kept": torch.full((2,), float(n))}) for n in range(0, 6, 2)}

Log = list[tuple[int, list[int]]]
"""Who trained which groups, in order."""

Faults = dict[int, list[Exception]]
"""What is raised when a group is trained, one after the other."""


class FakeActor:
    """Adds up the positions of its groups."""

    def __init__(self, position: int, life: int, log: Log, faults: Faults) -> None:
        self.position, self.life, self.log, self.faults = position, life, log, faults
        self.train, self.where = Remote(self._train), Remote(self._where)
        self.call = Remote(lambda config, function, item: function(item))

    def _train(self, config: Any, work: Work, message: Any) -> Done:
        positions = [group.position for group in work.groups]
        self.log.append((self.position, positions))
        clients = {client for group in work.groups for client in group.client_ids}
        assert set(work.states) == clients & set(STATES)
        for fault in (self.faults[n].pop() for n in positions if self.faults.get(n)):
            raise fault
        total = ExactSum(work.cohort_samples, work.cohort_size)
        total.add(
            {"sum": torch.tensor(positions, dtype=torch.float32)[:, None]},
            torch.ones(len(positions)),
        )
        return Done(total, states=dict(work.states), seconds=1.0)

    def _where(self) -> dict[str, Any]:
        return {"node_id": f"node {self.life}"}


@pytest.fixture
def fake() -> FakeRay:
    return FakeRay()


@pytest.fixture
def log() -> Log:
    return []


@pytest.fixture
def faults() -> Faults:
    return {}


@pytest.fixture
def pool(
    monkeypatch: pytest.MonkeyPatch, fake: FakeRay, log: Log, faults: Faults
) -> Iterator[ActorPool]:
    lives = [0, 0]

    def start(self: ActorPool, position: int) -> FakeActor:
        lives[position] += 1
        return FakeActor(position, lives[position], log, faults)

    monkeypatch.setattr(pool_module, "ray", fake)
    monkeypatch.setattr(ActorPool, "_start", start)
    made = ActorPool(Placement({}, ({}, {}), (0, 1), 1, 0, 1, ""), None)  # type: ignore[arg-type]
    made.config = experiment("x.npz")
    yield made
    made.close()


def train(pool: ActorPool, number: int = 1) -> float:
    """The sum over all groups."""
    total, states = ExactSum(24, 6), dict[int, Any]()
    for done in pool.train(Work(number, GROUPS, STATES, 24, 6), {}):
        total.merge(done.total)
        states |= done.states
    assert {c: s.method["kept"].tolist() for c, s in states.items()} == {
        n: [n, n] for n in (0, 2, 4)
    }
    return float(total.mean()["sum"]) * 6


def no_replacement(future: Any) -> bool:
    """As if no node had room for the bundle."""
    return future.method.__name__ == "_where" and future.method.__self__.life > 1


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ObjectLostError("00", None, ""),
        ObjectReconstructionFailedError("00"),
        OutOfMemoryError("the node is short of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_was_lost_is_trained_again_group_by_group(
    pool: ActorPool, log: Log, faults: Faults, fake: FakeRay, error: Exception
):
    expected = train(pool)
    plan = dict(log)
    log.clear()
    faults[plan[1][0]] = [error]
    before = pool._actors[1]
    assert train(pool, 2) == expected == 15
    assert (1, plan[1]) in log
    again = [groups for _, groups in log if groups not in plan.values()]
    assert sorted(again) == [[n] for n in sorted(plan[1])]
    assert fake.killed == [before]
    ((kind, message), *_) = pool.take_events()
    assert kind == "actor_lost"
    assert message.startswith("client actor 1: ")


def test_nobody_waits_for_a_replacement_that_cannot_be_placed(
    pool: ActorPool, log: Log, faults: Faults, fake: FakeRay
):
    fake.held = no_replacement
    train(pool)
    faults[dict(log)[1][0]] = [ActorDiedError()]
    log.clear()
    assert train(pool, 2) == 15
    assert {position for position, groups in log if len(groups) == 1} == {0}
    log.clear()
    assert train(pool, 3) == 15
    assert log == [(0, list(range(6)))]  # it plans with those who are there
    assert pool.map(lambda n: n * n, [1, 2, 3]) == [1, 4, 9]
    assert [kind for kind, _ in pool.take_events()] == ["actor_lost"]

    fake.held = lambda future: False  # a node has joined
    fake.wait(list(pool._starting))
    log.clear()
    assert train(pool, 4) == 15
    assert sorted(position for position, _ in log) == [0, 1]
    assert pool.take_events() == [("actor_back", "client actor 1: started again, on node node 2")]


def test_a_replacement_takes_over_in_mid_round(
    pool: ActorPool, log: Log, faults: Faults, fake: FakeRay
):
    train(pool)
    plan = dict(log)
    faults[plan[1][0]] = [ActorDiedError()]
    log.clear()
    fake.held = lambda future: future.method == pool._actors[0]._train and len(log) <= len(plan[1])
    assert train(pool, 2) == 15
    assert log == [(1, plan[1]), *((1, [n]) for n in plan[1]), (0, plan[0])]
    assert [kind for kind, _ in pool.take_events()] == ["actor_lost", "actor_back"]


def test_others_take_over_from_who_never_starts(pool: ActorPool, log: Log, fake: FakeRay):
    fake.held = lambda future: future.method == pool._actors[1]._where
    assert train(pool) == 15
    assert {position for position, _ in log} == {0}
    assert sorted(n for _, groups in log for n in groups) == list(range(6))
    assert pool.take_events() == []


def test_without_any_actor_the_run_ends_with_a_reason(
    pool: ActorPool, log: Log, faults: Faults, fake: FakeRay
):
    fake.held = no_replacement
    train(pool)
    faults |= {groups[0]: [ActorDiedError()] for _, groups in log}
    with pytest.raises(ExecutionError, match="round 2: the cluster started none of the lost"):
        train(pool, 2)
    with pytest.raises(ExecutionError, match="server-side work: the cluster started none"):
        pool.map(abs, [1])


def test_a_group_that_kills_whoever_trains_it_ends_the_run(
    pool: ActorPool, log: Log, faults: Faults
):
    faults[0] = [ActorDiedError()] * 9
    with pytest.raises(ExecutionError, match="round 1: client actors died 6 times"):  # 2 actors + 4
        train(pool)
    assert len(faults[0]) == 3
