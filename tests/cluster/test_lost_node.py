"""A node that dies in mid-round, and one that joins, on real raylets: the same bits either way."""

from pathlib import Path
from typing import Any

import pytest

from fedsim.results.study import Study, load
from fedsim.results.tables.equality import equal_results
from tests.cluster.raylets import seen_by
from tests.integration.studies import local

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lost-node")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What `lost_node.py` saw."""
    return seen_by("lost_node", folder)


@pytest.fixture(scope="module")
def expected(found: dict[str, Any], folder: Path) -> Study:
    """The same run in this process, where nothing is lost."""
    return local(folder / "study.yaml", folder / "local")


@pytest.mark.parametrize(
    ("name", "told"), [("alone", ["actor_lost"]), ("joined", ["actor_lost", "actor_back"])]
)
def test_a_node_lost_in_mid_round_leaves_no_trace_in_results(
    found: dict[str, Any], folder: Path, expected: Study, name: str, told: list[str]
):
    study = load(folder / name)
    assert found[name]["error"] == ""
    assert study.runs.status.tolist() == ["finished"]
    assert study.runs.num_resumes.tolist() == [0]
    assert study.runs.bit_comparable.all()
    assert equal_results(expected, study) == []
    assert study.events.kind.tolist() == told
    assert set(study.events["round"]) == {2}


def test_who_joins_gets_the_actor_that_was_lost(found: dict[str, Any], folder: Path):
    *_, back = load(folder / "joined").events.message
    assert found["joined"]["joined"] in back


def test_the_coordinator_is_beside_the_driver(found: dict[str, Any]):
    assert found["servers"] == [f"server-{found['head']}"]


def test_a_run_is_placed_on_the_nodes_that_live(found: dict[str, Any], folder: Path):
    assert found["alone"]["offered"] == found["joined"]["offered"] == [0, 1, 1]
    assert load(folder / "joined").runs.num_nodes.tolist() == [3]  # of four, one is dead
