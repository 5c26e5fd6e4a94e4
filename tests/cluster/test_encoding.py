"""Images are encoded by GPU-fraction actors, to the same bits as in one process."""

from typing import Any

import pytest

from tests.cluster.raylets import seen_by

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `extracting.py` saw."""
    return seen_by("extracting", tmp_path_factory.mktemp("extraction"))


def test_extractors_hold_a_fraction_of_a_gpu_each(found: dict[str, Any]):
    assert found["num_extractors"] == 3  # of four quarters, one is the preflight's
    where = found["where"]
    assert found["lost"] == []
    assert [actor["resources"]["GPU"] for actor in where] == [0.25] * 3
    assert [actor["gpu_ids"] for actor in where] == [["0"]] * 3
    assert len({actor["pid"] for actor in where}) == 3


def test_the_bits_do_not_depend_on_who_encodes(found: dict[str, Any]):
    assert found["equal"]
    assert found["equal without"]
    assert found["none started"] == []


def test_the_others_take_over_from_an_extractor_that_died(found: dict[str, Any]):
    assert found["killed"]
    assert found["lost after a kill"] == 1
    assert found["equal after a kill"]


def test_what_is_wrong_with_an_image_is_said_as_it_is(found: dict[str, Any]):
    assert found["refused"].startswith("images must be uint8")


def test_the_preflight_fills_the_store_of_every_node(found: dict[str, Any]):
    assert found["extractors of the preflight"] >= 1
    assert found["in both stores"] == [True] * 4  # features, and those of views


def test_ctrl_c_keeps_the_finished_shards(found: dict[str, Any]):
    encoded, total = found["interrupted"][-1]
    assert 0 < encoded < total
    assert found["kept"] >= 1
    assert found["resumed"][0][0] >= encoded  # it went on from there
    assert found["resumed"][-1] == [total, total]  # however soon it was done
    assert found["left"] == 0
