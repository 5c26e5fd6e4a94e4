"""Placement is arithmetic: what fits, what is refused, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsim.cluster.placement import Node, Placement, place, plans_memory
from fedsim.config.sections import ResourcesConfig
from fedsim.errors import PlacementError

GIB = 2**30


def asked(num_clients: int = 8, **resources: Any) -> tuple[ResourcesConfig, int, int]:
    """What `place` reads of a run whose cohort is all clients, in four groups or a few more."""
    return ResourcesConfig(**resources), num_clients, max(2, math.ceil(num_clients / 4))


def actors_per_gpu(placement: Placement) -> list[int]:
    bundles = placement.actor_bundles
    return sorted((bundles.count(b) for b in set(bundles)), reverse=True)


def test_a_laptop_gets_one_actor_per_cpu():
    placement = place(*asked(), [Node(cpus=2)])
    assert (placement.num_actors, placement.gpus_per_actor) == (2, 0)
    assert placement.bundles == ({"CPU": 1.0}, {"CPU": 1.0})
    assert placement.head == {}
    assert [placement.bundle_of(a) for a in range(2)] == [0, 1]


def test_more_actors_than_groups_would_idle():
    assert place(*asked(num_clients=8), [Node(cpus=64)]).num_actors == 4  # groups of 2


def test_a_sweep_fills_the_cluster_with_runs_before_it_splits_one():
    nodes = [Node(cpus=8)]
    shapes = {runs: place(*asked(), nodes, runs) for runs in (1, 2, 4, 100)}
    assert {runs: p.num_actors for runs, p in shapes.items()} == {1: 4, 2: 4, 4: 2, 100: 1}
    assert {runs: p.concurrent_runs for runs, p in shapes.items()} == {1: 2, 2: 2, 4: 4, 100: 8}


def test_clients_per_actor_means_what_it_says():
    assert place(*asked(clients_per_actor=1), [Node(cpus=8)]).num_actors == 8
    assert place(*asked(clients_per_actor=3), [Node(cpus=8)]).num_actors == 3


def test_gpus_are_shared_in_quarters_unless_told_otherwise():
    placement = place(*asked(), [Node(cpus=8, gpus=1)])
    assert placement.gpus_per_actor == 0.25


def test_measured_memory_settles_the_fraction():
    node = Node(cpus=16, gpus=1, gpu_memory_bytes=24 * GIB)
    need = {"gpu_memory_bytes_per_client": 7 * GIB}
    assert place(*asked(**need), [node]).gpus_per_actor == pytest.approx(1 / 3)  # 21.6 / 7 = 3.08


def test_the_smallest_known_memory_counts_and_the_unknown_is_told():
    nodes = [Node(8, 1, 80 * GIB), Node(8, 1, 24 * GIB), Node(8, 1), Node(8)]
    placement = place(*asked(gpu_memory_bytes_per_client=7 * GIB), nodes)
    assert placement.gpus_per_actor == pytest.approx(1 / 3)
    assert "; 3 x 7.0 GiB on a GPU of 24.0 GiB; GPU memory of 1 node(s)" in placement.arithmetic
    assert "GiB" not in place(*asked(), nodes).arithmetic  # nothing was asked


@pytest.mark.parametrize(
    ("resources", "matters"),
    [
        ({}, False),
        ({"gpu_memory_bytes_per_client": GIB}, True),
        ({"gpu_memory_bytes_per_client": GIB, "gpus_per_client": 0.5}, True),
        ({"gpu_memory_bytes_per_client": GIB, "gpus_per_client": 0}, False),
    ],
)
def test_memory_matters_where_clients_on_gpus_say_what_they_need(
    resources: dict[str, Any], matters: bool
):
    assert plans_memory([asked()[0], asked(**resources)[0]]) is matters


def test_actors_are_spread_over_gpus_before_they_are_packed():
    node = Node(cpus=16, gpus=4)
    for actors, expected in ((3, [1, 1, 1]), (4, [1] * 4), (6, [2, 2, 1, 1]), (8, [2] * 4)):
        placement = place(*asked(num_actors=actors, gpus_per_client=0.5), [node])
        assert actors_per_gpu(placement) == expected


def test_a_single_run_holds_its_gpus_whole_so_that_ray_cannot_pack_it():
    placement = place(*asked(num_actors=2, gpus_per_client=0.25), [Node(cpus=8, gpus=2)])
    assert placement.head == {"GPU": 0.25}
    assert placement.bundles == ({"CPU": 1.0, "GPU": 0.75}, {"CPU": 1.0, "GPU": 1.0})


def test_runs_that_would_wait_for_each_other_share_gpus():
    placement = place(*asked(gpus_per_client=0.25), [Node(cpus=8, gpus=1)], num_runs=2)
    assert (placement.num_actors, placement.concurrent_runs) == (1, 2)
    assert (placement.head, placement.bundles) == ({"GPU": 0.25}, ({"CPU": 1.0, "GPU": 0.25},))


def test_the_coordinators_share_is_not_forgotten_when_runs_are_counted():
    nodes = [Node(cpus=16, gpus=2)]
    for runs in (1, 2, 4):
        placement = place(*asked(num_clients=40, gpus_per_client=0.25), nodes, runs)
        assert placement.concurrent_runs == runs


def test_bundles_fit_nodes_that_differ():
    nodes = [Node(cpus=7, gpus=2), Node(cpus=1, gpus=2)]
    placement = place(*asked(24, gpus_per_client=0.25, num_actors=8), nodes)
    assert grant(nodes, placement)


def test_whole_gpus_are_never_shared():
    placement = place(*asked(num_actors=2, gpus_per_client=2), [Node(cpus=8, gpus=4)])
    assert placement.bundles == ({"CPU": 1.0, "GPU": 2.0},) * 2
    with pytest.raises(PlacementError, match=r"room for 1"):
        place(*asked(num_actors=2, gpus_per_client=2), [Node(cpus=8, gpus=3)])


def test_a_fraction_never_spans_two_gpus():
    # 0.6 of each of two GPUs is free twice over 1.2, but a client needs one device.
    placement = place(*asked(gpus_per_client=0.6), [Node(cpus=8, gpus=2)])
    assert placement.num_actors == 2


def test_nodes_count_by_what_runs_short_on_each():
    nodes = [Node(cpus=2, gpus=4), Node(cpus=16, gpus=1), Node(cpus=16, gpus=0)]
    with pytest.raises(PlacementError, match="room for 6"):  # 2 by its CPUs, 4 by its GPU, none
        place(*asked(num_clients=20, clients_per_actor=1, gpus_per_client=0.25), nodes)


@pytest.mark.parametrize(
    ("resources", "nodes", "words"),
    [
        (
            {"clients_per_actor": 1},
            [Node(cpus=2)],
            ["8 client actors x (1 CPU and 0 GPUs) = 8 CPUs", "have 2 CPUs", "room for 2"],
        ),
        (
            {"gpus_per_client": 0.5},
            [Node(cpus=2)],
            ["gpus_per_client is 0.5", "0 GPUs", "use 0 or auto"],
        ),
        (
            {"clients_per_actor": 1, "gpus_per_client": 0.5},
            [Node(cpus=16, gpus=2)],
            ["8 client actors x (1 CPU and 0.5 GPUs) = 8 CPUs and 4 GPUs", "room for 4"],
        ),
        (
            {"gpus_per_client": 0.25, "gpu_memory_bytes_per_client": 8 * GIB},
            [Node(cpus=16, gpus=1, gpu_memory_bytes=24 * GIB)],
            ["4 x 8.0 GiB = 32.0 GiB", "90% of its 24.0 GiB is 21.6 GiB", "raise"],
        ),
        (
            {"gpu_memory_bytes_per_client": 25 * GIB},
            [Node(cpus=16, gpus=1, gpu_memory_bytes=24 * GIB)],
            ["needs 25.0 GiB of one GPU", "90% of its 24.0 GiB is 21.6 GiB", "larger GPUs"],
        ),
        (
            {"cpus_per_client": 4.0},
            [Node(cpus=2), Node(cpus=3)],
            ["no client actor fits", "needs 4 CPUs", "2 node(s) have 5 CPUs"],
        ),
    ],
    ids=["cpus", "no gpus", "gpus", "memory", "too large", "nothing fits"],
)
def test_over_commit_is_refused_with_the_arithmetic(
    resources: dict[str, Any], nodes: list[Node], words: list[str]
):
    with pytest.raises(PlacementError) as caught:
        place(*asked(**resources), nodes)
    for word in words:
        assert word in str(caught.value)


def test_the_arithmetic_is_said_in_words():
    text = place(*asked(), [Node(cpus=4), Node(cpus=4)], 3).arithmetic
    assert "2 node(s) with 8 CPUs and 0 GPUs hold 8 client actors of 1 CPU and 0 GPUs" in text
    assert "2 client actor(s) hosting up to 4 of its 8 clients" in text
    assert "3 run(s) at once" in text


def grant(nodes: list[Node], placement: Placement) -> bool:
    """Whether every bundle finds a node and a GPU, the largest first."""
    cpus = [node.cpus for node in nodes]
    gpus = [[1.0] * int(node.gpus) for node in nodes]

    def take(bundle: dict[str, float]) -> bool:
        need_cpu, need = bundle.get("CPU", 0), bundle.get("GPU", 0)
        # Best fit, as Ray does: the node and device with the least room that is enough.
        fits: list[tuple[float, int, list[int]]] = []
        for n, free in enumerate(gpus):
            if cpus[n] < need_cpu - 1e-6:
                continue
            if need >= 1:
                whole = [g for g, share in enumerate(free) if share > 1 - 1e-6]
                if len(whole) >= need:
                    fits.append((cpus[n], n, whole[: int(need)]))
            elif need:
                enough = [g for g, share in enumerate(free) if share > need - 1e-6]
                if enough:
                    best = min(enough, key=free.__getitem__)
                    fits.append((free[best] + cpus[n] / 1e3, n, [best]))
            else:
                fits.append((cpus[n], n, []))
        if not fits:
            return False
        _, n, devices = min(fits)
        cpus[n] -= need_cpu
        for g in devices:
            gpus[n][g] -= min(need, 1.0)
        return True

    wanted = sorted(
        [placement.head, *placement.bundles],
        key=lambda b: (-b.get("GPU", 0), -b.get("CPU", 0)),
    )
    return all(take(bundle) for bundle in wanted)


nodes = st.lists(
    st.builds(Node, cpus=st.integers(1, 12), gpus=st.integers(0, 4)), min_size=1, max_size=3
)


@settings(deadline=None)
@given(
    nodes=nodes,
    gpus=st.sampled_from(["auto", 0, 0.2, 0.25, 0.3, 0.5, 0.75, 1, 2]),
    cpus=st.sampled_from([0.5, 1.0, 2.0]),
    actors=st.one_of(st.just("auto"), st.integers(1, 12)),
    num_runs=st.integers(1, 9),
)
def test_what_is_granted_always_fits(
    nodes: list[Node], gpus: Any, cpus: float, actors: Any, num_runs: int
):
    given = asked(24, gpus_per_client=gpus, cpus_per_client=cpus, num_actors=actors)
    try:
        placement = place(*given, nodes, num_runs)
    except PlacementError:
        assume(False)
        return
    assert actors in ("auto", placement.num_actors)
    held = [0.0] * len(placement.bundles)
    for actor in range(placement.num_actors):
        held[placement.actor_bundles[actor]] += placement.gpus_per_actor
    for bundle, share in zip(placement.bundles, held, strict=True):
        assert bundle.get("GPU", 0) >= share - 1e-3  # its actors find their shares in it
        assert bundle.get("GPU", 0) <= 1 or bundle["GPU"] == placement.gpus_per_actor
    assert sum(b["CPU"] for b in placement.bundles) == pytest.approx(cpus * placement.num_actors)
    assert grant(nodes, placement)
