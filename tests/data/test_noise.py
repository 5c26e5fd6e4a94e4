"""Spoilt clients: shares are exact, draws are the sample's own, severity is monotone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config.sections import NoiseConfig
from fedsim.data.from_config import partition_clients
from fedsim.data.noise import (
    num_wrong,
    observed_labels,
    spoil_features,
    spoil_images,
    spoilt_clients,
)
from fedsim.errors import ConfigError
from tests.helpers import experiment

KINDS = ("gaussian", "blur", "contrast", "occlusion")
LABELS = np.random.default_rng(0).integers(5, size=300)


def pictures(count: int = 6, side: int = 32) -> np.ndarray:
    """Smooth pictures with edges, so that every corruption can be seen."""
    across = np.linspace(0, 200, side)[None, :] + np.linspace(0, 50, side)[:, None]
    images = np.stack([np.roll(across, 3 * i, axis=1) for i in range(count)])
    images[:, side // 4 : side // 2, side // 4 : side // 2] = 255
    return np.repeat(images[:, None], 3, axis=1).astype(np.uint8)


# --- clients -------------------------------------------------------------------------------------


@given(share=st.floats(0.01, 1), count=st.integers(1, 60), seed=st.integers(0, 5))
def test_the_share_of_clients_is_exact(share: float, count: int, seed: int):
    noise = NoiseConfig(clients=share, labels=0.5)
    wanted = int(np.floor(share * count + 0.5))
    if wanted == 0:
        with pytest.raises(ConfigError, match=f"of {count} clients that is none"):
            spoilt_clients(noise, count, seed)
        return
    found = spoilt_clients(noise, count, seed)
    assert len(set(found)) == len(found) == wanted
    assert list(found) == sorted(found)
    assert set(found) <= set(range(count))


def test_more_clients_are_the_same_and_more():
    sets = [
        set(spoilt_clients(NoiseConfig(clients=share, labels=1.0), 20, 3))
        for share in (0.1, 0.4, 1.0)
    ]
    assert sets[0] < sets[1] < sets[2]
    others = {spoilt_clients(NoiseConfig(clients=0.3, labels=1.0), 20, seed) for seed in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(
    "noise", [{}, {"clients": 0.5}, {"labels": 0.5}, {"images": "blur", "clients": 0.0}]
)
def test_nothing_to_spoil(noise: dict):
    assert spoilt_clients(NoiseConfig(**noise), 3, 0) == ()


def test_the_split_says_who_and_is_itself_unchanged():
    def split(**settings: Any) -> Any:
        return partition_clients(
            LABELS, **experiment("x.npz", "fedavg_head", seed=4, **settings).for_partition()
        )

    clean, noisy = split(), split(noise__clients=0.5, noise__labels=0.3)
    assert clean.spoilt == ()
    assert len(noisy.spoilt) == 3
    for part in ("fit", "held"):
        pairs = zip(getattr(clean, part), getattr(noisy, part), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    same = split(noise__clients=0.5, noise__images="blur", train__seed=9, train__lr=1.0)
    assert same.spoilt == noisy.spoilt


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_labels_is_exact_and_all_are_wrong(share: float):
    rows_of = {2: np.arange(0, 300, 3), 5: np.array([1, 4, 7, 10, 13]), 7: np.array([2])}
    found = observed_labels(LABELS, rows_of, share, 5, seed=1)
    for rows in rows_of.values():
        assert (found[rows] != LABELS[rows]).sum() == num_wrong(share, len(rows))
    others = np.setdiff1d(np.arange(300), np.concatenate(list(rows_of.values())))
    assert np.array_equal(found[others], LABELS[others])
    assert (found.min(), found.max()) == (0, 4)
    assert np.array_equal(found, observed_labels(LABELS, rows_of, share, 5, seed=1))
    # One client's labels do not depend on which others are spoilt.
    alone = observed_labels(LABELS, {5: rows_of[5]}, share, 5, seed=1)
    assert np.array_equal(alone[rows_of[5]], found[rows_of[5]])


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = np.full(40_000, 2)
    found = observed_labels(labels, {0: np.arange(len(labels))}, 1.0, 5, seed=0)
    shares = np.bincount(found, minlength=5) / len(labels)
    assert shares == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.01)


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_corrupted_more_by_a_higher_severity(kind: Any):
    images, rows = pictures(), np.array([3, 8, 11, 20, 21, 40])
    distances = []
    for severity in (0.1, 0.3, 0.6, 1.0):
        found = spoil_images(images, rows, NoiseConfig(images=kind, severity=severity), seed=0)
        assert found.dtype == np.uint8
        assert found.shape == images.shape
        distances.append(np.abs(found.astype(float) - images).mean())
    assert distances == sorted(distances)
    assert distances[0] > 0.2
    assert distances[-1] > 2 * distances[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_the_same_in_any_company(kind: Any):
    images, rows, noise = pictures(), np.arange(10, 16), NoiseConfig(images=kind)
    whole = spoil_images(images, rows, noise, seed=2)
    alone = spoil_images(images[4:5], rows[4:5], noise, seed=2)
    assert np.array_equal(whole[4], alone[0])
    if kind in ("gaussian", "occlusion"):  # the others have nothing to draw
        assert not np.array_equal(whole, spoil_images(images, rows, noise, seed=3))
        assert not np.array_equal(whole[0], spoil_images(images[:1], rows[1:2], noise, seed=2)[0])


def test_what_each_corruption_does():
    images, rows = pictures(1, 64), np.zeros(1, dtype=int)

    def spoil(kind: Any, severity: float) -> np.ndarray:
        found = spoil_images(images, rows, NoiseConfig(images=kind, severity=severity), seed=0)
        return found[0].astype(float)

    clean = images[0].astype(float)
    assert spoil("contrast", 1.0).std() == pytest.approx(0.05 * clean.std(), rel=0.1)
    assert spoil("contrast", 1.0).mean() == pytest.approx(clean.mean(), abs=1)
    assert (spoil("occlusion", 0.5) == 128).mean() == pytest.approx(0.4, abs=0.03)
    middle = np.full((1, 3, 64, 64), 128, dtype=np.uint8)
    noisy = spoil_images(middle, rows, NoiseConfig(images="gaussian", severity=0.2), seed=0)
    assert noisy.std() == pytest.approx(25.5, rel=0.05)
    assert np.abs(np.diff(spoil("blur", 0.5))).max() < np.abs(np.diff(clean)).max() / 3


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", [0.1, 0.5, 1.0])
def test_features_turn_by_a_known_angle_and_stay_unit(severity: float):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 512))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    noise, rows = NoiseConfig(images="gaussian", severity=severity), np.arange(50)
    found = spoil_features(features, rows, noise, seed=0)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    cosines = (found * features).sum(1)
    assert cosines.mean() == pytest.approx(1 / np.sqrt(1 + 4 * severity**2), abs=0.02)
    some = spoil_features(features[7:9], rows[7:9], noise, seed=0)
    assert np.array_equal(some, found[7:9])


@pytest.mark.parametrize("kind", ["blur", "contrast", "occlusion"])
def test_features_cannot_be_corrupted_as_images(kind: Any):
    with pytest.raises(ConfigError, match=f"noise.images is '{kind}', but the data holds precomp"):
        spoil_features(np.ones((1, 4), np.float32), np.zeros(1, int), NoiseConfig(images=kind), 0)
