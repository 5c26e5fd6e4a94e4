"""Groups, their padded batches, cohorts, and who trains what."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config.sections import TrainConfig
from fedsim.engine.batching import GHOST, Group, make_batches, make_groups, num_steps
from fedsim.engine.schedule import Paces, assign, sample_cohort
from fedsim.methods.base import Batches

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def group_of(counts: list[int], ids: list[int] | None = None) -> Group:
    """Clients 0, 1, ... with rows 0..n, or some of them."""
    rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    chosen = list(range(len(counts))) if ids is None else ids
    return Group(0, tuple(chosen), tuple(rows[c] for c in chosen))


def made(group: Group, train: TrainConfig, seed: int = 0, round: int = 1) -> Batches:
    inputs = torch.arange(1000.0)[:, None]
    return make_batches(group, inputs, torch.arange(1000), train, seed, round)


def order_of(batches: Batches, client: int) -> list[list[int]]:
    """A client's steps: its valid rows."""
    c = batches.client_ids.index(client)
    return [rows[c][mask[c]].tolist() for rows, mask in batches.steps if mask[c].any()]


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 12), st.integers(1, 3), st.integers(1, 50))
def test_every_sample_once_per_epoch(counts: list[int], size: int, epochs: int, round: int):
    train, group = TrainConfig(batch_size=size, local_epochs=epochs), group_of(counts)
    batches = made(group, train, round=round)
    assert len(batches) == max(num_steps(n, train, 1) for n in counts)
    for client, rows in zip(group.client_ids, group.indices, strict=True):
        steps = order_of(batches, client)
        assert len(steps) == num_steps(len(rows), train, 1)
        each = len(steps) // epochs
        for epoch in range(epochs):
            seen = [row for step in steps[epoch * each : (epoch + 1) * each] for row in step]
            assert sorted(seen) == rows.tolist()
        assert all(len(step) <= size for step in steps)
        # Finished clients never come back: training relies on it.
        active = [bool(mask[batches.client_ids.index(client)].any()) for _, mask in batches.steps]
        assert active == sorted(active, reverse=True)


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_measuring_sees_every_sample_once(counts: list[int]):
    batches = made(group_of(counts), TrainConfig(batch_size=4, local_epochs=3))
    seen: Counter[tuple[int, int]] = Counter()
    for batch in batches.all_samples():
        for c, client in enumerate(batches.client_ids):
            seen.update((client, int(y)) for y in batch.y[c][batch.mask[c]])
    rows = group_of(counts).indices
    assert seen == Counter({(c, int(row)): 1 for c in range(len(counts)) for row in rows[c]})


def test_large_clients_are_measured_in_chunks():
    batches = made(group_of([600, 3]), TrainConfig(batch_size=4))
    assert [batch.x.shape[1] for batch in batches.all_samples()] == [256, 256, 256]
    assert sum(int(batch.mask.sum()) for batch in batches.all_samples()) == 603


@settings(max_examples=40, deadline=None)
@given(sizes, st.data())
def test_a_clients_order_does_not_depend_on_its_group(counts: list[int], data: st.DataObject):
    train, client = TrainConfig(batch_size=4, local_epochs=2), 0
    others = data.draw(st.lists(st.sampled_from(range(len(counts))), unique=True))
    ids = [c for c in others if c != client]
    ids.insert(data.draw(st.integers(0, len(ids))), client)
    alone = order_of(made(group_of(counts, [client]), train), client)
    assert order_of(made(group_of(counts, ids), train), client) == alone
    assert order_of(made(group_of(counts, ids), train), client) == alone  # and repeats


@pytest.mark.parametrize("count", [0, 3])
def test_rows_may_be_read_only_as_ray_sends_them(count: int):
    """NumPy copies what it permutes, unless it is empty."""
    group, train = group_of([4, count]), TrainConfig(batch_size=4)
    expected = made(group, train)
    for rows in group.indices:
        rows.flags.writeable = False
    assert [order_of(made(group, train), c) for c in (0, 1)] == [
        order_of(expected, c) for c in (0, 1)
    ]


def test_orders_differ_by_epoch_round_client_and_seed():
    train = TrainConfig(batch_size=30, local_epochs=2)
    group = group_of([30, 30])
    first = order_of(made(group, train), 0)
    assert first[0] != first[1]
    assert order_of(made(group, train, round=2), 0) != first
    assert order_of(made(group, train, seed=1), 0) != first
    second = [[row - 30 for row in step] for step in order_of(made(group, train), 1)]
    assert second != first


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 5))
def test_views_are_drawn_and_the_order_stays(counts: list[int], views: int):
    train, group = TrainConfig(batch_size=4, local_epochs=2), group_of(counts)
    viewed = train.model_copy(update={"augment_views": views})
    plain, found = made(group, train), made(group, viewed)
    for client in group.client_ids:
        rows = [np.array(step) for step in order_of(found, client)]
        assert [(step // views).tolist() for step in rows] == order_of(plain, client)
        alone = made(group.only([client]), viewed)
        assert order_of(alone, client) == [step.tolist() for step in rows]  # whoever is beside
    scanned = [rows[mask] for rows, mask in found.scan]
    assert all(bool((rows % views == 0).all()) for rows in scanned)  # images as they are
    assert [(rows // views).tolist() for rows in scanned] == [
        rows[mask].tolist() for rows, mask in plain.scan
    ]


def test_views_differ_by_epoch_round_client_and_seed():
    train = TrainConfig(batch_size=30, local_epochs=2, augment_views=4)
    group = group_of([30, 30])

    def drawn(client: int = 0, epoch: int = 0, **how: int) -> list[int]:
        """The view of each sample, in the order of the samples."""
        return [row % 4 for row in sorted(order_of(made(group, train, **how), client)[epoch])]

    first = drawn()
    assert set(first) == {0, 1, 2, 3}
    others = [drawn(1), drawn(epoch=1), drawn(round=2), drawn(seed=1)]
    assert all(other != first for other in others)


def test_padding_repeats_the_clients_own_rows_and_is_masked():
    batches = made(group_of([2, 9]), TrainConfig(batch_size=4))
    assert len(batches) == 3
    for batch in batches:
        assert batch.x.shape == (2, 4, 1)
        assert set(batch.y[0].tolist()) <= {0, 1}
        assert torch.equal(batch.x[..., 0].long(), batch.y)
        assert torch.equal(batch.active, batch.mask.any(1))
    assert [int(batch.mask[0].sum()) for batch in batches] == [2, 0, 0]


def test_the_width_is_that_of_the_largest_client():
    assert next(iter(made(group_of([2, 3]), TrainConfig(batch_size=32)))).x.shape == (2, 3, 1)


def test_a_lone_client_gets_a_ghost():
    batches = made(group_of([5]), TrainConfig(batch_size=4))
    assert batches.client_ids == (0, GHOST)
    assert batches.num_samples.tolist() == [5, 0]
    assert batches.num_clients == 2
    assert not any(batch.mask[1].any() for batch in batches)
    assert not any(batch.mask[1].any() for batch in batches.all_samples())
    pair = made(group_of([5, 5]), TrainConfig(batch_size=4))
    assert pair.client_ids == (0, 1)
    assert pair.num_samples.dtype == torch.float64


def test_inputs_are_prepared_batch_by_batch():
    group, calls = group_of([6]), list[int]()

    def prepare(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x * 2

    inputs, labels = torch.arange(6.0)[:, None], torch.arange(6)
    batches = make_batches(group, inputs, labels, TrainConfig(batch_size=4), 0, 1, prepare)
    assert calls == []
    assert all(torch.equal(batch.x[..., 0], 2.0 * batch.y) for batch in batches)
    assert calls == [2, 2]


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(13)), st.integers(1, 15))
def test_groups_are_the_cohort_largest_clients_first(cohort: list[int], size: int):
    rows = [np.arange(c, c + 1 + c % 3) for c in range(13)]
    groups = make_groups(cohort, rows, size)
    ordered = [c for group in groups for c in group.client_ids]
    sizes = [len(rows[c]) for c in ordered]
    assert sizes == sorted(sizes, reverse=True)
    for count in (1, 2, 3):  # of equal clients, those sampled first
        assert [c for c in ordered if len(rows[c]) == count] == [
            c for c in cohort if len(rows[c]) == count
        ]
    assert [group.position for group in groups] == list(range(len(groups)))
    assert all(len(group.client_ids) == size for group in groups[:-1])
    for group in groups:
        assert group.num_samples == sum(1 + c % 3 for c in group.client_ids)
        for client, own in zip(group.client_ids, group.indices, strict=True):
            assert own is rows[client]


def test_some_clients_of_a_group():
    group = group_of([2, 3, 4]).only([2, 0])
    assert group.client_ids == (2, 0)
    assert [len(rows) for rows in group.indices] == [4, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 6))
def test_all_groups_are_assigned_once_and_fairly(counts: list[int], workers: int):
    groups = [Group(i, (i,), (np.arange(n),)) for i, n in enumerate(counts)]
    plan = assign(groups, [1.0] * workers)
    assert len(plan) == workers
    assert sorted(g.position for part in plan for g in part) == list(range(len(groups)))
    loads = [sum(g.num_samples for g in part) for part in plan]
    # Graham's bound for list scheduling: whoever ends last began when everybody was busy.
    assert max(loads) <= sum(counts) / workers + (1 - 1 / workers) * max(counts) + 1e-9
    assert plan == assign(list(reversed(groups)), [1.0] * workers)


def test_a_worker_that_is_slower_gets_less():
    groups = [Group(i, (i,), (np.arange(2),)) for i in range(40)]
    paces = Paces(3)
    assert [len(part) for part in assign(groups, paces.now())] == [14, 13, 13]
    paces.learn({0: (14, 99.0), 1: (13, 1.0), 2: (13, 1.0)})  # a first round loads libraries
    assert paces.now() == [1.0] * 3
    for _ in range(4):
        paces.learn({0: (20, 20.0), 1: (10, 10.0), 2: (10, 20.0)})
    slow = assign(groups, paces.now())
    assert [len(part) for part in slow] == [16, 16, 8]
    assert slow == assign(groups, paces.now())
    paces.forget(2)
    assert [len(part) for part in assign(groups, paces.now())][2] > 8


def test_a_worker_that_looked_slow_once_is_tried_again():
    paces, two = Paces(2), [Group(i, (i,), (np.arange(5),)) for i in range(2)]
    for _ in range(2):
        paces.learn({0: (5, 10.0), 1: (5, 2.0)})  # a neighbour's job beside the first
    assert [len(part) for part in assign(two, paces.now())] == [0, 2]
    paces.learn({1: (10, 4.0)})
    assert [len(part) for part in assign(two, paces.now())] == [1, 1]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.data(), st.integers(0, 99), st.integers(1, 99))
def test_cohorts_have_no_client_twice(clients: int, data: st.DataObject, seed: int, round: int):
    size = data.draw(st.integers(1, clients))
    cohort = sample_cohort(clients, size, seed, round)
    assert len(set(cohort)) == len(cohort) == size
    assert set(cohort) <= set(range(clients))
    assert cohort == sample_cohort(clients, size, seed, round)
    assert all(type(c) is int for c in cohort)


def test_cohorts_differ_by_round_and_reach_everyone():
    cohorts = [sample_cohort(20, 5, 0, r) for r in range(1, 40)]
    assert len({tuple(c) for c in cohorts}) == len(cohorts)
    assert {c for cohort in cohorts for c in cohort} == set(range(20))
    counts = Counter(c for r in range(2000) for c in sample_cohort(10, 3, 1, r))
    assert all(counts[c] == pytest.approx(600, abs=90) for c in range(10))
