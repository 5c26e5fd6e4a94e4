"""The quality of synthetic sets: known cases, and each measure against its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedsim.models.set_quality import (
    MEASURES,
    USE,
    RealFeatures,
    SyntheticFeatures,
    set_quality,
    usefulness,
)
from tests.helpers import unit

CLASSES, DIM = 3, 6
TEXT = unit(CLASSES, DIM, seed=1)


def samples(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around the text of their class, sorted by class."""
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    return functional.normalize(
        TEXT[labels] + 0.5 * unit(len(labels), DIM, seed=seed), dim=1
    ), labels


def real(per_class: int = 20) -> RealFeatures:
    return RealFeatures(*samples(per_class, 2), *samples(9, 3))


def made(per_class: int = 8, seed: int = 4) -> SyntheticFeatures:
    features, labels = samples(per_class, seed)
    return SyntheticFeatures(features, features, labels)


def quality(
    synthetic: SyntheticFeatures, data: RealFeatures | None, ratio: float = 1.0
) -> dict[str, np.ndarray]:
    found = set_quality(synthetic, TEXT, data)
    assert tuple(found) == MEASURES
    if data is not None:
        found |= usefulness(synthetic, TEXT, data, 20.0, ratio, 5.0)
        assert tuple(found) == MEASURES + USE
    assert {array.shape for array in found.values()} == {(CLASSES + 1,)}
    return found


def test_text_alone_tells_agreement_similarity_and_diversity():
    synthetic = made()
    found = quality(synthetic, None)
    cosine = (synthetic.features @ TEXT.T).numpy()
    labels = synthetic.labels.numpy()
    agrees, own = cosine.argmax(1) == labels, cosine[range(24), labels]
    for label in range(CLASSES):
        rows = np.flatnonzero(labels == label)
        assert found["clip_agreement"][label] == agrees[rows].mean()
        assert found["clip_similarity"][label] == pytest.approx(own[rows].mean(), rel=1e-6)
        pairs = [
            1 - float(synthetic.features[i] @ synthetic.features[j])
            for i in rows
            for j in rows
            if i != j
        ]
        assert found["diversity"][label] == pytest.approx(np.mean(pairs), rel=1e-6)
    assert found["clip_agreement"][-1] == agrees.mean()
    assert found["clip_similarity"][-1] == pytest.approx(own.mean(), rel=1e-6)
    assert found["diversity"][-1] == pytest.approx(found["diversity"][:-1].mean())
    for name in set(MEASURES) - {"clip_agreement", "clip_similarity", "diversity"}:
        assert np.isnan(found[name]).all(), name


def test_training_images_as_synthetic_ones_are_perfect_and_caught():
    data = real()
    found = quality(SyntheticFeatures(data.train, data.train, data.train_labels), data)
    for name in ("precision", "recall", "coverage", "memorisation"):
        assert (found[name] == 1).all(), name
    for name in ("nearest_similarity", "real_similarity"):
        np.testing.assert_allclose(found[name], 1, atol=1e-6)
    np.testing.assert_allclose(found["fid"], 0, atol=1e-6)
    assert (found["kid"] < 0).all()  # unbiased: of a copy, even less than of a second draw


def test_another_class_is_far_and_of_no_use():
    data, good = real(), made()
    wrong = replace(good, keys=good.features.roll(8, 0), features=good.features.roll(8, 0))
    found, right = quality(wrong, data, ratio=50.0), quality(good, data, ratio=50.0)
    for name in ("clip_agreement", "clip_similarity", "precision", "cache_accuracy", "density"):
        assert found[name][:-1].mean() < 0.5 * right[name][:-1].mean(), name
    assert (found["kid"] > right["kid"])[:-1].all()
    assert (found["fid"] > right["fid"])[:-1].all()
    # As a whole both sets are the same samples; only use and agreement know of labels.
    for name in ("fid", "kid", "precision", "recall", "nearest_similarity"):
        assert found[name][-1] == pytest.approx(right[name][-1]), name
    assert found["gain_per_image"][-1] < 0 <= right["gain_per_image"][-1]


def test_fresh_samples_of_the_same_law_are_as_near_as_held_out_ones():
    found = [quality(made(9, seed), real())["memorisation"][-1] for seed in range(10, 20)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_usefulness_is_tip_adapter_without_training():
    data, synthetic = real(), made(2)
    keys = functional.normalize(synthetic.features + 0.3 * unit(6, DIM, seed=9), dim=1)
    found = quality(replace(synthetic, keys=keys), data, ratio=3.0)
    val, labels = data.val.numpy(), data.val_labels.numpy()
    text_logits = 20 * val @ TEXT.numpy().T
    affinity = np.exp(-5 * (1 - val @ keys.numpy().T))
    right = (text_logits + 3 * affinity @ np.eye(3)[synthetic.labels]).argmax(1) == labels
    before = text_logits.argmax(1) == labels
    for label in range(CLASSES):
        mine = labels == label
        assert found["cache_accuracy"][label] == right[mine].mean()
        gain = (right[mine].mean() - before[mine].mean()) / 2
        assert found["gain_per_image"][label] == pytest.approx(gain)
    assert found["cache_accuracy"][-1] == pytest.approx(right.mean())
    assert found["gain_per_image"][-1] == pytest.approx((right.mean() - before.mean()) / 6)


def test_what_is_too_little_is_missing_and_nothing_else():
    data = real(per_class=4)
    empty = torch.empty(0, DIM)
    data = replace(data, val=empty, val_labels=torch.empty(0, dtype=torch.long))
    found = quality(made(2), data)
    for name in ("memorisation", "cache_accuracy", "gain_per_image"):
        assert np.isnan(found[name]).all(), name
    assert np.isnan(found["fid"]).all()  # 6 images of 6 dimensions
    assert np.isfinite(quality(made(3), data)["fid"][-1])
    assert np.isfinite(found["kid"]).all()
    assert np.isnan(found["recall"][:-1]).all()
    assert np.isfinite(found["precision"]).all()
    assert np.isnan(found["coverage"][:-1]).all()
    assert np.isfinite(found["coverage"][-1])


def test_large_sets_are_thinned_the_same_way_each_time():
    data, synthetic = real(per_class=900), made(4)
    first, second = quality(synthetic, data), quality(synthetic, data)
    for name in MEASURES:
        np.testing.assert_array_equal(first[name], second[name])
    assert first["precision"][-1] > 0.5
