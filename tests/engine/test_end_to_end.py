"""Every shipped method on digits, with the shipped encoder and generator."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.config import Experiment
from fedsim.config.study_file import parse_study
from fedsim.driver.traffic import traffic
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.local import run_local
from fedsim.errors import ConfigError
from fedsim.inputs.preflight import preflight
from fedsim.methods import METHODS, method_class
from fedsim.models.clip import PRETRAINED
from fedsim.results.study import Study
from tests.helpers import experiment, write_features

CLASSIFIER = {
    "models.clip": None,
    "models.classifier": {"width": 16},
    "train.lr": 0.1,
    "train.momentum": 0.9,
    "train.local_epochs": 5,
    "data.max_train_samples": None,
}
DISTILLED = {
    "models.classifier": {"width": 8},
    "models.generator_steps": 3,
    "distill.images_per_class": 3,
    "distill.latent_steps": 2,
    "distill.student_steps": 2,
    "distill.optimizer": "adam",
    "distill.latent_lr": 0.1,
    "distill.feature_lr": 0.1,
    "distill.augment": ["crop"],
    "options.server_epochs": 150,
    "options.server_batch_size": 32,
    "options.server_lr": 0.1,
    "options.server_momentum": 0.9,
}
CALM = {
    "models.classifier": {"width": 16},
    "options.server_lr": 0.05,
    "options.server_momentum": 0.0,
}
"""Far from where another processor's last bits decide whether training comes off."""
SETTINGS: dict[str, dict[str, Any]] = {
    "zero_shot": {},
    "synthetic_only": {"train.lr": 0.05},
    "fedavg_head": {"train.lr": 0.05},
    "fedavg_finetune": {"train.lr": 1e-4},
    "cachefl": {"train.lr": 0.05},
    "tip_adapter": {},
    "local_only": {"train.lr": 0.05},
    "centralised_head": {"train.lr": 0.05},
    "centralised_cache": {"train.lr": 0.05},
    "fedprox_head": {"train.lr": 0.05, "train.proximal_mu": 0.1},
    "promptfl": {"train.lr": 0.02, "options.n_ctx": 8},
    "lora": {"train.lr": 3e-3},
    "fedclip": {"train.lr": 0.1},
    "clip_adapter": {"train.lr": 0.05},
    "stat_cache": {"train.rounds": 3, "train.lr": 1e-3, "options.text_weight": 1.0},
    "afl": {},
    "gda": {},
    "cachefl_analytic": {"train.lr": 1e-3, "cache.residual_ratio": 10.0},
    "fedavg": CLASSIFIER,
    "fedprox": CLASSIFIER | {"train.proximal_mu": 0.01},
    "scaffold": CLASSIFIER | {"train.momentum": 0.5},
    "fednova": CLASSIFIER,
    "moon": CLASSIFIER,
    "local_only_classifier": CLASSIFIER,
    "centralised_classifier": CLASSIFIER,
    "fedavg_from_synthetic": CLASSIFIER | {"models.clip": "tiny-clip", "options.epochs": 5},
    "synthetic_only_classifier": CLASSIFIER
    | {"models.clip": "tiny-clip", "train.local_epochs": 40},
    "feddgm": CLASSIFIER | DISTILLED,
    "feddm": CLASSIFIER
    | DISTILLED
    | CALM
    | {"distill.latent_steps": 100, "distill.feature_lr": 10.0},
    "feddm_sums": CLASSIFIER
    | DISTILLED
    | {"distill.latent_steps": 100, "distill.feature_lr": 10.0, "options.server_lr": 0.03},
    "cachefl_dgm": {"train.lr": 0.05, "options.server_steps": 2, "distill.latent_steps": 2},
    "dynafed": CLASSIFIER
    | DISTILLED
    | CALM
    | {"options.trajectory_rounds": 1, "options.server_epochs": 20},
}
GENERATED = (
    "cachefl",
    "cachefl_dgm",
    "synthetic_only",
    "tip_adapter",
    "centralised_cache",
    "cachefl_analytic",
    "fedavg_from_synthetic",
    "synthetic_only_classifier",
)
MADE = {"feddgm": 2 * 3, "feddm": 2 * 3, "feddm_sums": 2, "dynafed": 1, "cachefl_dgm": 2 * 3}
"""Rows of synthetic sets that are made on the way: rounds and clients."""
CONTROLS = ("text", "random", "public_shots")
GENERATOR = pytest.mark.skipif(
    not (PRETRAINED / "tiny-diffusion" / "model_index.json").is_file(),
    reason="the shipped generator is not there",
)


def digits(method: str, **own: Any) -> Experiment:
    tree = {
        "study": "digits",
        "methods": {method: own},
        "data": {"max_train_samples": 80},
        "partition": {"scheme": "dirichlet_label", "dirichlet_alpha": 0.5, "num_clients": 3},
        "train": {"rounds": 2, "batch_size": 16},
        "cache": {"images_per_class": 2},
        "engine": {"backend": "local"},
    }
    (found,) = parse_study(tree).experiments(METHODS)
    return found


def finished(config: Experiment, folder: Path) -> Study:
    run_local(config, folder)
    return fedsim.load(folder)


def test_every_method_is_tried():
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=GENERATOR) if m in GENERATED else m for m in METHODS]
)
def test_a_method_runs_to_its_end(tmp_path: Path, method: str):
    config, cls = digits(method, **SETTINGS[method]), method_class(method)
    preflight([config])
    num_rounds = cls.num_rounds(config.for_method())
    study = finished(config, tmp_path)
    (row,) = study.runs.itertuples()
    assert (row.status, row.dataset) == ("finished", "digits")
    rounds = study.rounds.set_index("round")
    assert rounds.index.tolist() == list(range(num_rounds + 1))
    assert rounds["accuracy"].between(0, 1).all()
    assert rounds["loss"].notna().all()
    assert rounds["accuracy"].iloc[-1] > 0.3  # ten classes: far from chance
    clients = study.clients.query("round > 0")
    assert len(clients) == num_rounds * (cls.uses_clients and (1 if cls.pooled else 3))
    sent = traffic(config)
    total = 3 * (num_rounds * (sent.up + sent.down) + sent.early + sent.once)
    if method != "feddm":  # what it sends depends on the classes of a client
        assert rounds[["bytes_up", "bytes_down"]].to_numpy().sum() == total
    if len(clients) and cls.averages and not cls.personal:
        assert clients["loss_after"].sum() < clients["loss_before"].sum()
    made = 11 * (method in GENERATED) + MADE.get(method, 0)  # classes and the set; on the way
    assert len(study.synthetic) == made
    assert study.events.empty


@pytest.mark.parametrize("compression", ["fp16", "int8", "topk"])
def test_what_a_dry_run_says_is_compressed_too(tmp_path: Path, compression: str):
    config = digits("fedavg_head", **{"wire.compression": compression, "train.rounds": 2})
    sent, full = traffic(config), traffic(digits("fedavg_head"))
    assert sent.up < full.up
    rounds = finished(config, tmp_path).rounds
    assert rounds["bytes_up"].sum() == 3 * 2 * sent.up


@GENERATOR
def test_the_generated_set_does_not_depend_on_the_method(tmp_path: Path):
    studies = [finished(digits(m, **{"train.rounds": 0}), tmp_path / m) for m in GENERATED]
    addresses = [study.runs["synthetic_set"].item() for study in studies]
    nearest, whole = studies[0].nearest_real(), studies[0].synthetic.query("class_name.isna()")
    assert nearest.similarity.mean() == whole["nearest_similarity"].item()
    assert nearest.pixels is not None
    assert nearest.pixels.shape == (8, 8, 8, 3)
    assert addresses[0] is not None
    assert len(set(addresses)) == 1


@pytest.mark.parametrize("init", CONTROLS)
def test_controls_of_the_cache_need_no_generator(tmp_path: Path, init: str):
    own = {"use": "cachefl", "cache.init": init, "models.generator": None, "train.rounds": 1}
    config = digits(f"cache_{init}", **own)
    preflight([config])
    study = finished(config, tmp_path)
    assert study.runs["cache_init"].tolist() == [init]
    assert study.runs["status"].tolist() == ["finished"]
    folder = CheckpointFolder(tmp_path, config.run_id)
    snapshot = folder.latest()
    assert snapshot is not None
    keys = {"text": 10, "random": 20, "public_shots": 20}[init]
    assert snapshot["state"]["keys"].shape[0] == keys
    labels = snapshot["state"]["values"].argmax(1)
    assert torch.equal(labels, labels.sort().values)
    assert torch.bincount(labels).tolist() == [keys // 10] * 10


def test_preflight_tells_all_problems_at_once(tmp_path: Path):
    data = write_features(tmp_path)
    make = functools.partial(experiment, data)
    wrong = [
        make("cachefl"),  # nothing to generate with
        make("fedavg_finetune"),  # features where pixels are needed
        make("fedavg_head", options={"a": 1}),
        make("zero_shot"),  # fine
    ]
    with pytest.raises(ConfigError) as caught:
        preflight(wrong)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert all(
        part in text for part in ("models.generator", "precomputed features", "fedavg_head.options")
    )
    preflight([make("zero_shot")])
