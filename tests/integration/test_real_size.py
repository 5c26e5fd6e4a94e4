"""Every method on CLIP at its real size: the code path of a study, with random weights.

Nothing is learnt here. What could break at real size and nowhere else is found: other towers
(BatchNorm, attention pooling, 77 tokens), 224 pixels, memory, and the bytes of a first download.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.config.study_file import parse_study
from fedsim.inputs.preflight import preflight
from fedsim.methods import METHODS, method_class
from tests.helpers import run

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.timeout(900)]

ENCODERS = {  # millions of numbers in the image and the text tower
    "RN50/random": {"visual": 38.37, "text": 63.69},
    "ViT-B-32/random": {"visual": 87.85, "text": 63.43},
    "ViT-B-16/random": {"visual": 86.19, "text": 63.43},
}
OWN: dict[str, dict[str, Any]] = {
    "fedprox_head": {"train.proximal_mu": 0.1},
    "stat_cache": {"train.rounds": 2},
    "lora": {"options.rank": 2},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, two samples for each of two clients; one of each class to validate and test."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("real-size") / "images.npz"
    arrays: dict[str, np.ndarray] = {"classnames": np.array(["sea_otter", "red fox"])}
    for split, number in (("train", 4), ("val", 2), ("test", 2)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (number, 60, 80, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(number) % 2
    np.savez(path, **arrays)
    return path


def study(images: Path, clip: str) -> dict[str, Any]:
    of_clip = [m for m in METHODS if method_class(m).inputs != "images"]
    return {
        "study": "real-size",
        "methods": {m: OWN.get(m) for m in of_clip},
        "data": {"name": str(images)},
        "models": {"clip": clip, "generator": "tiny-diffusion"},
        "cache": {"images_per_class": 1},
        "partition": {"scheme": "iid", "num_clients": 2},
        "train": {"rounds": 1, "batch_size": 2, "lr": 1e-4},
        "evaluation": {"holdout_fraction": 0.0},
        "engine": {"backend": "local", "group_size": 2},
    }


@pytest.mark.parametrize("clip", ENCODERS)
def test_every_method_takes_a_step(images: Path, tmp_path: Path, clip: str):
    experiments = parse_study(study(images, clip)).experiments(METHODS)
    preflight(experiments)
    for config in experiments:
        run(config, tmp_path)
    results = fedsim.load(tmp_path)
    assert results.runs["status"].tolist() == ["finished"] * len(experiments)
    assert results.events.empty
    rounds = results.rounds.merge(results.runs[["run_id", "method"]])
    assert rounds["loss"].notna().all()
    clients = results.clients.query("round == 1").merge(results.runs[["run_id", "method"]])
    for name, rows in clients.groupby("method"):
        cls = method_class(name)
        towers = () if cls.pooled else cls.frozen
        once = sum(4e6 * ENCODERS[clip][tower] for tower in towers)
        if name != "fedavg_finetune":  # beside the towers, little is sent
            assert rows["bytes_down"].tolist() == pytest.approx([once] * len(rows), abs=10e6), name
        if cls.averages:
            assert (rows["update_norm"] > 0).all(), name
    used = {m for m in (c.method for c in experiments) if method_class(m).uses_clients}
    assert set(clients["method"]) == used
