"""A prior is one file and one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.config.families import PRIORS
from fedsim.results.study import load
from tests.helpers import experiment, run

FLAT = """
from fedsim.config.base import Section
from fedsim.distill.priors.base import Prior

class Options(Section):
    brightness: float = 0.0

class Flat(Prior):
    def __init__(self, brightness, shape):
        self.brightness, self.shape = brightness, shape

    def draw(self, labels, rng):
        import torch

        return {"grey": torch.full((len(labels), 1, 1, 1), self.brightness)}

    def decode(self, latents):
        return latents["grey"].expand(-1, *self.shape)

def load(options, request):
    return Flat(options.brightness, request.shape)
"""


def test_a_prior_of_one_s_own_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "flat.py"
    file.write_text(FLAT)
    monkeypatch.setitem(PRIORS, "flat", str(file))
    config = experiment(
        "digits",
        "feddgm",
        options={"server_epochs": 1},
        models__classifier={"depth": 1, "width": 4},
        data__max_train_samples=60,
        partition__num_clients=2,
        train__rounds=1,
        distill={"prior": "flat", "brightness": 0.6, "latent_steps": 0},
        distill__student_steps=1,
        distill__images_per_class=1,
    )
    study = load(run(config, tmp_path / "study"))
    assert study.runs["config.distill.brightness"].tolist() == [0.6]
    assert (study.synthetic_images(1).images == 204).all()  # (0.6 + 1) * 127.5


def test_options_are_checked_without_torch():
    script = (
        "import json, sys; from fedsim.config.distill import DistillConfig as C;"
        "[C(prior=name).options() for name in C.family];"
        "print(json.dumps(sorted(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    loaded = json.loads(found.stdout)
    assert set(PRIORS.values()) <= set(loaded)
    assert "torch" not in loaded
