"""A run's steps: their keys are those of the store, and older entries are still found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config import Experiment
from fedsim.inputs.prepare import InputSteps, prepare
from fedsim.methods import method_class
from fedsim.models.clip import PRETRAINED
from fedsim.storage.array_cache import address
from tests.helpers import experiment, run
from tests.inputs.test_synthetic_set import META, step

CPU = torch.device("cpu")
ON_HUB = {"clip": "ViT-B-32/openai", "generator": "stabilityai/sd-turbo"}
ALL = {"train__augment_views": 3, "noise__clients": 0.5, "noise__labels": 0.5}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def on_digits(method: str, models: dict[str, str | None] | None = None, **own: Any) -> Experiment:
    given = {"models": models or ON_HUB, "data__max_train_samples": 60, "seed": 1}
    return experiment("digits", method, **(given | own))


def addresses(config: Experiment) -> list[str]:
    return [step.address for step in InputSteps(config, method_class(config.use)).real]


@pytest.mark.skipif(
    not (PRETRAINED / "tiny-diffusion" / "model_index.json").is_file(),
    reason="the shipped generator is not there",
)
def test_what_a_run_stores_has_the_keys_of_its_steps(tmp_path: Path, store: Path):
    models = {"clip": "tiny-clip", "generator": "tiny-diffusion"}
    config = on_digits("cachefl", models, cache__images_per_class=1, train__rounds=1, **ALL)
    run(config, tmp_path / "run")
    found = {path.parent.name: json.loads(path.read_text()) for path in store.glob("*/key.json")}
    measured = {n for n, key in found.items() if key["kind"] in ("quality", "nearest", "flops")}
    keys = prepare(config, method_class(config.use), CPU).keys
    assert [key["kind"] for key in keys] == ["inputs", "views", "spoilt", "synthetic"]
    assert set(map(address, keys)) == found.keys() - measured


def test_addresses_are_those_of_earlier_versions():
    """Otherwise everything would be encoded and drawn again, and results would differ."""
    asked = on_digits("cachefl", cache__images_per_class=2, **ALL)
    assert addresses(asked) == [
        "10ffbec15f65443909b83c21",
        "39c10e6ccf382aba5ef29236",
        "4c869f34735f42df8479e130",
    ]
    assert addresses(on_digits("fedavg_finetune")) == ["b46565a4ed5a0ecc66dbabff"]
    assert step(asked, meta=META | {"templates": META["templates"][:1]}).address == (
        "d3a6a117043e9a2b8880ec96"
    )


def test_an_entry_of_an_earlier_version_is_read(store: Path, monkeypatch: pytest.MonkeyPatch):
    config = on_digits("fedavg", {"clip": None, "generator": None})
    folder = store / "3d8b8c0a3397d19f3a290a85"
    folder.mkdir(parents=True)
    facts = {"classnames": ["zero"], "logit_scale": 100.0, "visual_bytes": 0}
    meta = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    for name, array in {"meta": meta, "train_inputs": np.zeros((1, 1, 8, 8), np.uint8)}.items():
        np.save(folder / f"{name}.npy", array)
    monkeypatch.setattr("fedsim.data.from_config.read_dataset", None)  # nothing is made anew
    data = prepare(config, method_class("fedavg"), CPU)
    assert data.address == folder.name
    assert data.arrays["train_inputs"].shape == (1, 1, 8, 8)
    assert data.meta == facts | {"logit_scale": 10.0}
