"""What an experiment's data and partition sections mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import DataConfig
from fedsim.data.datasets import read_dataset
from fedsim.data.from_config import (
    DataSource,
    draw_seed,
    partition_clients,
    source_identity,
)
from fedsim.errors import DataError, PartitionError
from tests.helpers import experiment, write_features

LABELS = np.random.default_rng(0).integers(4, size=200)


def split(**settings: Any) -> Any:
    return partition_clients(
        LABELS, **experiment("x.npz", "fedavg_head", **settings).for_partition()
    )


def rows(parts: tuple[np.ndarray, ...]) -> list[list[int]]:
    return [part.tolist() for part in parts]


def test_every_row_is_trained_on_held_out_or_not_given():
    found = split()
    for own, fit, held in zip(found.partition.indices, found.fit, found.held, strict=True):
        assert sorted([*fit, *held]) == sorted(own)
        assert not set(fit) & set(held)
    everything = np.concatenate(found.partition.indices)
    assert len(set(everything)) == len(everything) == 200


def test_the_share_held_out_is_the_one_asked_for():
    found = split(partition__scheme="iid", evaluation__holdout_fraction=0.25)
    shares = [len(h) / len(o) for h, o in zip(found.held, found.partition.indices, strict=True)]
    assert shares == pytest.approx([0.25] * 6, abs=0.02)
    none = split(evaluation__holdout_fraction=0.0)
    assert rows(none.fit) == rows(none.partition.indices)
    assert all(len(part) == 0 for part in none.held)


def test_splits_follow_the_partitions_seed_alone():
    one = split(seed=1)
    same = split(seed=9, partition__seed=1, train__seed=5, train__rounds=7)
    assert rows(one.fit) == rows(same.fit)
    assert rows(one.held) == rows(same.held)
    assert rows(one.fit) != rows(split(seed=2).fit)


def test_a_clients_hold_out_does_not_change_its_partition():
    kept = split(evaluation__holdout_fraction=0.0).partition
    assert rows(split(evaluation__holdout_fraction=0.5).partition.indices) == rows(kept.indices)


def test_natural_clients_come_from_the_data():
    clients = np.repeat([7, 3, 3, 9], 50)
    config = experiment("x.npz", partition__scheme="natural", partition__num_clients=3)
    found = partition_clients(LABELS, clients, **config.for_partition())
    assert found.partition.num_clients == 3
    owned = [set(clients[part].tolist()) for part in found.partition.indices]
    assert all(len(own) == 1 for own in owned)
    with pytest.raises(PartitionError):
        partition_clients(LABELS, **config.for_partition())


def test_impossible_splits_say_so():
    with pytest.raises(PartitionError):
        split(partition__num_clients=150, partition__min_samples=2)


def test_only_drawn_data_depends_on_the_seed(tmp_path: Path):
    data = write_features(tmp_path)
    whole, few = DataConfig(name=str(data)), DataConfig(name=str(data), shots=2)
    assert draw_seed(whole, 4) == 0
    assert draw_seed(few, 4) == 4
    assert draw_seed(DataConfig(max_train_samples=9), 6) == 6
    first = read_dataset(few, 4).train
    assert len(first) == 8
    again = read_dataset(few, 4).train
    assert np.array_equal(first.features, again.features)
    other = read_dataset(few, 5).train
    assert not np.array_equal(first.features, other.features)


def test_a_source_is_read_when_it_is_asked_for_and_then_carried(tmp_path: Path):
    data = write_features(tmp_path)
    source = DataSource(DataConfig(name=str(data), shots=2), 4)
    unread = DataSource(DataConfig(name=str(tmp_path / "none.npz")), 4)
    assert len(source.dataset.train) == 8
    data.unlink()
    assert source.dataset is source.dataset
    with pytest.raises(DataError):
        _ = unread.dataset


def test_sources_are_known_by_name_and_content(tmp_path: Path):
    data = write_features(tmp_path)
    assert source_identity(None) is None
    assert source_identity("digits") == ["digits"]
    first = source_identity(str(data))
    write_features(tmp_path, seed=1)
    assert source_identity(str(data)) != first
    checkpoint = source_identity(f"ViT-B-32@{data}")
    assert checkpoint[0] == f"ViT-B-32@{data}"
    assert len(checkpoint) == 2
    assert len(source_identity("tiny-clip")) == 2  # shipped weights: known by their files
