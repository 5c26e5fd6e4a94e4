"""Metrics against their reference implementations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score
from torchmetrics.functional.classification import multiclass_calibration_error

from fedsim.engine.evaluate import predict, score


def sample(seed: int, n: int, k: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)) * scale, rng.integers(k, size=n)


@pytest.mark.parametrize(("n", "k"), [(1, 3), (40, 2), (300, 5), (2000, 10)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_are_those_of_scikit_learn_and_torchmetrics(n: int, k: int, scale: float):
    logits, labels = sample(n + k, n, k, scale)
    found = score(logits, labels)
    predicted = logits.argmax(1)
    probability = torch.from_numpy(logits).softmax(1)
    metrics = found.metrics
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    present = np.unique(labels)
    recalls = recall_score(labels, predicted, labels=present, average=None, zero_division=0)
    assert found.per_class == pytest.approx(dict(zip(present.tolist(), recalls, strict=True)))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["worst_class"] == pytest.approx(recalls.min())
    chosen = probability[torch.arange(n), torch.from_numpy(labels)].clamp_min(1e-300)
    assert metrics["nll"] == pytest.approx(-chosen.log().mean().item(), rel=1e-9)
    if scale <= 1:  # scikit-learn clips probabilities
        expected = log_loss(labels, probability.numpy(), labels=np.arange(k))
        assert metrics["nll"] == pytest.approx(expected, rel=1e-9)
    ece = multiclass_calibration_error(
        probability, torch.from_numpy(labels), num_classes=k, n_bins=15, norm="l1"
    )
    assert metrics["ece"] == pytest.approx(ece.item(), abs=1e-6)
    assert np.array_equal(found.predictions, predicted)
    assert found.predictions.dtype == np.int64


def test_huge_logits_do_not_overflow():
    found = score(np.array([[1e5, -1e5], [1e5, -1e5]]), np.array([0, 1]))
    assert found.metrics["nll"] == 1e5
    assert found.metrics["ece"] == pytest.approx(0.5)


def test_a_class_without_samples_does_not_count():
    found = score(np.eye(3)[[0, 0, 2]], np.array([0, 1, 0]))
    assert found.per_class == {0: 0.5, 1: 0.0}
    assert found.metrics["balanced_accuracy"] == 0.25
    assert found.metrics["worst_class"] == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(2, 6))
def test_metrics_ignore_order_and_shifts(seed: int, n: int, k: int):
    logits, labels = sample(seed, n, k, 2.0)
    one = score(logits, labels).metrics
    order = np.random.default_rng(seed).permutation(n)
    assert score(logits[order], labels[order]).metrics == pytest.approx(one)
    assert score(logits + 7.0, labels).metrics == pytest.approx(one)
    assert all(0 <= one[name] <= 1 for name in one if name != "nll")


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_prediction_does_not_depend_on_the_batches(batch_size: int):
    x = torch.arange(10.0)[:, None]
    logits = predict(lambda part: torch.cat([part, -part], 1), x, batch_size)
    assert logits.dtype == np.float64
    assert np.array_equal(logits, np.stack([np.arange(10.0), -np.arange(10.0)], 1))
