"""On a GPU: the numbers of the CPU within rounding, and memory that does not grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.config import Experiment
from fedsim.config.study_file import parse_study
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.local import LocalPool, drive
from fedsim.engine.round import Federation
from fedsim.engine.sinks import open_sinks
from fedsim.inputs.prepare import prepare
from fedsim.methods import METHODS, method_class
from fedsim.results.study import Study, load
from tests.helpers import experiment, write_features
from tests.methods.test_feddgm import config as distilling

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

MIB = 2**20


def digits(rounds: int = 2, **train: float) -> Experiment:
    """Fine-tuning of tiny-clip on a part of the digits."""
    tree = {
        "study": "gpu",
        "methods": {"fedavg_finetune": None},
        "data": {"name": "digits", "max_train_samples": 300},
        "models": {"clip": "tiny-clip", "generator": None},
        "partition": {"scheme": "dirichlet_label", "num_clients": 6, "dirichlet_alpha": 0.5},
        "train": {"rounds": rounds, "batch_size": 16, "lr": 0.01} | train,
        "engine": {"backend": "local", "group_size": 2},
    }
    return parse_study(tree).resolve([("fedavg_finetune", {}, 0, "final")], METHODS)[0]


def run_on(device: str, config: Experiment, folder: Path, memory: list[int] | None = None) -> Study:
    """The whole run on one device; `memory` hears what is allocated after every round."""

    def watch(row: dict) -> None:
        if memory is not None:
            torch.cuda.synchronize()
            memory.append(torch.cuda.memory_allocated())

    sinks, checkpoints = open_sinks(folder, config.run_id), CheckpointFolder(folder, config.run_id)
    pool = LocalPool(config, device)
    drive(Federation(config, sinks, checkpoints, pool, device=device), watch)
    return load(folder)


def test_features_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = digits()
    features = method_class("fedavg_head")
    found = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / device))  # nothing is shared
        found[device] = prepare(config, features, torch.device(device), synthetic=False).arrays
    for name in ("train_inputs", "test_inputs", "text_features"):
        np.testing.assert_allclose(found["cuda"][name], found["cpu"][name], atol=1e-4)


@pytest.mark.parametrize("method", ["fedavg_head", "cache_text", "fedavg_finetune"])
def test_training_and_evaluation_agree(method: str, tmp_path: Path):
    if method == "fedavg_finetune":
        config = digits()
    else:
        config = experiment(write_features(tmp_path), method)
    cpu, cuda = (run_on(device, config, tmp_path / device) for device in ("cpu", "cuda"))
    assert set(cuda.runs.device) == {"cuda"}
    assert set(cuda.clients.device.dropna()) == {"cuda"}
    assert (cuda.clients.peak_memory_bytes.dropna() > 0).all()
    np.testing.assert_allclose(cuda.rounds.loss, cpu.rounds.loss, rtol=1e-3, atol=1e-4)
    trained = ["client_id", "weight", "num_steps", "bytes_up", "bytes_down", "train_flops"]
    assert cuda.clients[trained].equals(cpu.clients[trained])
    moved = [study.clients.update_norm.dropna() for study in (cuda, cpu)]
    np.testing.assert_allclose(*moved, rtol=5e-3)
    agree = cuda.predictions.prediction == cpu.predictions.prediction
    assert agree.mean() > 0.98


@pytest.mark.parametrize("use", ["feddgm", "feddm", "feddm_sums", "dynafed"])
def test_distillation_agrees(use: str, tmp_path: Path):
    config = distilling({"trajectory_rounds": 1} if use == "dynafed" else {}, use=use)
    cpu, cuda = (run_on(device, config, tmp_path / device) for device in ("cpu", "cuda"))
    measures = [name for name in cpu.synthetic if name.startswith("match_loss")]
    first = [study.synthetic.query("round == 1")[measures] for study in (cuda, cpu)]
    np.testing.assert_allclose(*first, rtol=2e-2)
    images = [study.synthetic_images(1).images.astype(int) for study in (cuda, cpu)]
    assert abs(images[0] - images[1]).mean() < 2
    np.testing.assert_allclose(cuda.rounds.loss, cpu.rounds.loss, rtol=5e-2)


def test_two_runs_on_one_gpu_agree(tmp_path: Path):
    config = digits()
    first, second = (run_on("cuda", config, tmp_path / name) for name in ("a", "b"))
    np.testing.assert_allclose(first.rounds.loss, second.rounds.loss, rtol=1e-3)


def test_memory_does_not_grow_over_rounds(tmp_path: Path):
    memory: list[int] = []
    run_on("cuda", digits(rounds=22), tmp_path, memory)
    assert len(memory) == 23
    assert max(memory[3:]) - memory[2] < MIB  # set-up, then the first two rounds, fill it
