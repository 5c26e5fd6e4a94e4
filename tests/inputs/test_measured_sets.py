"""Rows of `synthetic`: a class each and the set's own; computed once per set and data."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config.sections import CacheConfig
from fedsim.data.containers import Split
from fedsim.inputs import measured_sets
from fedsim.inputs.measured_sets import nearest_real, quality_rows
from fedsim.inputs.run_inputs import RunInputs
from fedsim.models.set_quality import MEASURES, USE
from tests.helpers import unit

NAMES = ["ant", "bee", "cat"]


def run_inputs(name: str, inputs: np.ndarray | None = None, train: Any = None) -> RunInputs:
    def features(count: int, seed: int) -> np.ndarray:
        return unit(count, 8, seed=seed).numpy()

    arrays = {
        "train_inputs": features(60, 1) if inputs is None else inputs,
        "train_labels": np.arange(60) % 3,
        "val_inputs": features(12, 2),
        "val_labels": np.arange(12) % 3,
    }
    made: dict[str, np.ndarray] = {
        "inputs": features(12, 3),
        "features": features(12, 4),
        "labels": np.repeat(np.arange(3), 4),
        "drawn_agreement": np.array([0.5, 1.0, 0.0]),
        "draw_s": np.array([6.0]),
    }
    meta = {"classnames": NAMES, "logit_scale": 10.0}
    source: Any = SimpleNamespace(dataset=SimpleNamespace(train=train))
    return RunInputs(arrays, meta, "data", source, {}, made, name)


def rows(data: RunInputs, **settings: Any) -> list[dict[str, Any]]:
    return quality_rows(CacheConfig(**settings), data, unit(3, 8, seed=5))


def test_a_row_per_class_and_one_for_the_set():
    found = rows(run_inputs("set"))
    assert [row["class_name"] for row in found] == [*NAMES, None]
    assert [row["label"] for row in found] == [0, 1, 2, None]
    assert [row["num_images"] for row in found] == [4, 4, 4, 12]
    assert [row["drawn_agreement"] for row in found] == [0.5, 1.0, 0.0, 0.5]
    assert [row["generate_s"] for row in found] == [2.0, 2.0, 2.0, 6.0]
    keys = {"round", "class_name", "label", "num_images", "drawn_agreement", "generate_s"}
    assert set(found[-1]) == keys | set(MEASURES) | set(USE)
    assert set(MEASURES) - set(found[0]) == {"fid"}  # four images: missing, not 0


def test_real_images_as_pixels_are_not_compared_with():
    found = rows(run_inputs("pixels", np.zeros((60, 3, 4, 4), np.uint8)))
    assert "kid" not in found[-1]
    assert "clip_agreement" in found[-1]


def test_nearest_real_images_are_known_and_the_closest_shown():
    pictures = np.arange(60, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(6, 2)
    data = run_inputs("neighbours", train=Split(pictures, None, np.arange(60) % 3))
    cosines = data.synthetic["features"] @ data.arrays["train_inputs"].T
    found = nearest_real(data)
    assert found is not None
    assert found["rows"].tolist() == cosines.argmax(1).tolist()
    np.testing.assert_allclose(found["similarity"], cosines.max(1), rtol=1e-6)
    assert found["closest"].tolist() == np.argsort(-cosines.max(1))[:8].tolist()
    assert found["pixels"].shape == (8, 4, 4, 3)  # the middle, in colour
    assert found["pixels"][:, 0, 0, 0].tolist() == found["rows"][found["closest"]].tolist()
    pixels = run_inputs("pixels", np.zeros((60, 3, 4, 4), np.uint8))
    assert nearest_real(pixels) is None


def test_features_have_no_pixels_to_show():
    train = Split(None, np.zeros((60, 8), np.float32), np.arange(60) % 3)
    found = nearest_real(run_inputs("features", train=train))
    assert found is not None
    assert set(found) == {"rows", "similarity"}


def test_it_is_computed_once(monkeypatch: pytest.MonkeyPatch):
    calls, compute = [], measured_sets.set_quality

    def counting(*args: Any) -> Any:
        calls.append(1)
        return compute(*args)

    monkeypatch.setattr(measured_sets, "set_quality", counting)
    first = rows(run_inputs("once"))
    assert rows(run_inputs("once"), images_per_class=3) == first
    assert len(calls) == 1
    other = rows(run_inputs("once"), sharpness=6.0, residual_ratio=1e3)
    assert len(calls) == 1  # settings of the cache matter for its use alone
    for one, two in zip(first, other, strict=True):
        assert {k: v for k, v in one.items() if k not in USE} == {
            k: v for k, v in two.items() if k not in USE
        }
    use = [[row["cache_accuracy"] for row in found] for found in (first, other)]
    assert use[0] != use[1]
    rows(run_inputs("another"))
    quality_rows(CacheConfig(), run_inputs("once"), -unit(3, 8, seed=5))
    assert len(calls) == 3
    assert torch.get_num_threads() == 1
