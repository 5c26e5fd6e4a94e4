"""The data of a study is read once, and every partition of it is made once."""

from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Experiment
from fedsim.config.study_file import parse_study
from fedsim.data.datasets import read_dataset
from fedsim.data.from_config import partition_clients
from fedsim.driver import data_checks
from fedsim.driver.data_checks import Known, check_data, each_partition
from fedsim.errors import DataError
from fedsim.methods import METHODS
from tests.helpers import write_features


def experiments(folder: Path, **changes: object) -> list[Experiment]:
    tree = {
        "study": "s",
        "data": {"name": str(write_features(folder))},
        "methods": ["fedavg_head", "zero_shot"],
        "partitions": [{"scheme": "iid", "num_clients": n} for n in (2, 3)],
        "seeds": [0, 1],
    }
    return parse_study(tree | changes).experiments(METHODS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read and made, in order."""
    found: list[str] = []

    def read(*settings: Any) -> object:
        found.append("read")
        return read_dataset(*settings)

    def split(*rows: Any, **settings: Any) -> object:
        found.append(f"{settings['partition'].num_clients} {settings['seed']}")
        return partition_clients(*rows, **settings)

    monkeypatch.setattr(data_checks, "read_dataset", read)
    monkeypatch.setattr(data_checks, "partition_clients", split)
    return found


def test_methods_share_data_and_partitions(tmp_path: Path, asked: list[str]):
    every = experiments(tmp_path)
    found = list(each_partition(every))
    assert asked == ["read", "2 0", "3 0", "2 1", "3 1"]
    assert [position for position, *_ in found] == [0, 1, 2, 3]
    assert [len(split.fit) for *_, split in found] == [2, 3, 2, 3]


def test_a_draw_of_its_own_is_another_data_set(tmp_path: Path, asked: list[str]):
    every = experiments(tmp_path, data={"name": str(write_features(tmp_path)), "shots": 4})
    every.sort(key=lambda e: (e.method, e.partition.num_clients, e.seed))
    assert [position for position, *_ in each_partition(every)] == [0, 2, 1, 3]
    assert asked == ["read", "2 0", "3 0", "read", "2 1", "3 1"]


def test_what_was_checked_is_not_read_again(tmp_path: Path, asked: list[str]):
    known: Known = set()
    check_data(experiments(tmp_path), known)
    asked.clear()
    check_data(experiments(tmp_path, seeds=[1, 2]), known)
    assert asked == ["read", "2 2", "3 2"]
    check_data(experiments(tmp_path), known)
    assert asked == ["read", "2 2", "3 2"]


def test_a_partition_that_cannot_be_made_is_refused(tmp_path: Path):
    many = [{"scheme": "iid", "num_clients": 1000}]
    with pytest.raises(DataError, match="1000 clients"):
        check_data(experiments(tmp_path, partitions=many))
