"""Real data beside the repository; skipped where it is absent."""

from pathlib import Path

import numpy as np
import pytest

from fedsim.data import load_dataset, make_partition


def test_mnist_with_its_recorded_clients(shared_data: Path):
    data = load_dataset(str(shared_data / "mnist_20clients.npz"))
    with np.load(shared_data / "mnist_20clients.npz") as archive:
        test = archive["is_local_test"].astype(bool)
        assert np.array_equal(data.test.images, archive["x"][test])
        assert len(data.train) + len(data.val) == (~test).sum()
    split = make_partition(data.train.labels, scheme="natural", clients=data.train.clients, rng=0)
    assert split.num_clients == 20
    assert split.sizes.sum() == len(data.train)


def test_cifar_has_its_channels_last(shared_data: Path):
    data = load_dataset(str(shared_data / "cifar10_6000.npz"))
    assert data.train.images.shape[1:] == (32, 32, 3)
    assert np.bincount(data.test.labels).tolist() == [120] * 10


def test_caltech_features_zero_shot(shared_data: Path):
    data = load_dataset(
        str(shared_data / "clip_real_bundle" / "caltech101_vitb32.npz"),
        shots=16,
        only_text_classes=True,
    )
    assert (data.num_classes, len(data.train), len(data.test)) == (59, 59 * 16, 1728)
    unit = [
        a / np.linalg.norm(a, axis=1, keepdims=True)
        for a in (data.test.features, data.text_features)
    ]
    predicted = (unit[0] @ unit[1].T).argmax(1)
    assert (predicted == data.test.labels).mean() == pytest.approx(0.925, abs=0.001)


def test_dtd_trains_on_its_val_split(shared_data: Path):
    data = load_dataset(
        str(shared_data / "clip_real_bundle" / "dtd_vitb32.npz"),
        train_split="val",
        val_fraction=0,
    )
    means = np.stack([data.train.features[data.train.labels == c].mean(0) for c in range(47)])
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (data.test.features, means)]
    accuracy = ((unit[0] @ unit[1].T).argmax(1) == data.test.labels).mean()
    assert accuracy == pytest.approx(0.633, abs=0.01)


def test_pacs_one_domain_a_client(shared_data: Path):
    data = load_dataset("pacs", path=shared_data / "pacs_40", domains=True)
    assert data.domain_names == ("art_painting", "cartoon", "photo", "sketch")
    split = make_partition(
        data.train.labels, scheme="domain", num_clients=4, domains=data.train.domains, rng=0
    )
    for rows in split.indices:
        folders = {data.train.images.files[i].split("/")[0] for i in rows}
        assert len(folders) == 1
    assert data.train.load_images(split.indices[0][:2]).shape == (2, 227, 227, 3)
