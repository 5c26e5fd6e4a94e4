"""Client actors hold GPU fractions, on two real raylets with logical GPUs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from tests.cluster.raylets import seen_by
from tests.integration.studies import local

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two-nodes")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What `two_nodes.py` saw."""
    return seen_by("two_nodes", folder)


def test_both_nodes_and_their_gpus_are_seen(found: dict[str, Any]):
    assert sorted(map(tuple, found["nodes"])) == [(2, 0), (4, 2)]


@pytest.mark.parametrize(
    ("name", "share", "per_gpu"), [("two quarters", 0.25, [1, 1]), ("three halves", 0.5, [2, 1])]
)
def test_actors_hold_their_fraction_spread_before_packed(
    found: dict[str, Any], name: str, share: float, per_gpu: list[int]
):
    where = found[name]
    assert [actor["resources"]["GPU"] for actor in where] == [share] * len(where)
    assert all(len(actor["gpu_ids"]) == 1 for actor in where)
    ids = Counter(actor["gpu_ids"][0] for actor in where)
    assert sorted(ids.values(), reverse=True) == per_gpu
    assert set(ids) == {"0", "1"}
    assert len({actor["pid"] for actor in where}) == len(where)
    assert len({actor["node_id"] for actor in where}) == 1  # the node that has GPUs


def test_over_commit_is_refused_with_the_arithmetic_of_this_cluster(found: dict[str, Any]):
    text = found["refused"]
    assert "8 client actors x (1 CPU and 0.5 GPUs) = 8 CPUs and 4 GPUs" in text
    assert "2 node(s) have 6 CPUs and 2 GPUs, room for 4" in text


def test_actors_fill_both_nodes(found: dict[str, Any]):
    where = found["on both nodes"]
    assert sorted(Counter(actor["node_id"] for actor in where).values()) == [1, 2]
    assert all(actor["gpu_ids"] == [] for actor in where)


def test_gpu_memory_is_asked_once_and_only_of_a_node_with_gpus_and_only_where_it_matters(
    found: dict[str, Any],
):
    seen = found["memory"]
    assert seen["asked without need"] == 0
    assert sorted(map(tuple, seen["nodes"]), key=lambda node: node[0]) == [
        (2, 0, None),
        (4, 2, 24564 * 2**20),
    ]
    assert seen["asked"] == 1


def test_over_commit_of_gpu_memory_is_refused_before_round_1(found: dict[str, Any]):
    seen = found["memory"]
    for text in (seen["refused"], seen["refused dry"]):
        assert "2 client actors of 0.5 GPU share one GPU and need 2 x 12.0 GiB = 24.0 GiB" in text
        assert "90% of its 24.0 GiB is 21.6 GiB; raise resources.gpus_per_client" in text
    assert seen["written"] is False


def test_the_automatic_fraction_follows_the_memory(found: dict[str, Any]):
    where = found["memory"]["thirds"]  # 21.6 / 7 = 3.08
    assert [actor["resources"]["GPU"] for actor in where] == [pytest.approx(1 / 3, abs=1e-3)] * 2


def test_a_node_whose_driver_does_not_answer_is_used_and_named_in_the_arithmetic(
    found: dict[str, Any],
):
    text = found["with a silent node"]
    assert "3 node(s) with 7 CPUs and 3 GPUs" in text
    assert "3 x 7.0 GiB on a GPU of 24.0 GiB" in text
    assert "GPU memory of 1 node(s) is unknown and was not checked" in text
    assert found["silent node asked"] == 1


def test_the_doctor_sees_that_nodes_share_a_folder(found: dict[str, Any], folder: Path):
    shared = [line for line in found["doctor"] if f"output folder {folder.resolve()} " in line]
    assert [(line.split()[0], line.split()[-1]) for line in shared] == [("ok", "shared")] * 2
    assert found["token left"] == []


def test_a_sweep_on_two_nodes_computes_the_same_bits(found: dict[str, Any], folder: Path):
    expected = local(folder / "study.yaml", folder / "local")
    study = load(folder / "ray")
    assert set(study.runs.num_nodes) == {2}
    assert equal_results(expected, study) == []
