"""A network is one file and one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.config.families import NETWORKS
from fedsim.results.study import load
from tests.helpers import experiment, run

MLP = """
from fedsim.config.base import Section

class Options(Section):
    hidden: int = 5

def build(options, shape):
    from torch import nn

    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, options.hidden), nn.ReLU())
"""


def test_a_network_of_one_s_own_is_a_file_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "mlp.py"
    file.write_text(MLP)
    monkeypatch.setitem(NETWORKS, "mlp", str(file))
    config = experiment(
        "digits",
        "fedavg",
        models__classifier={"name": "mlp", "hidden": 3},
        data__max_train_samples=100,
        partition__num_clients=2,
        train__rounds=1,
    )
    study = load(run(config, tmp_path / "study"))
    assert study.runs["config.models.classifier.hidden"].tolist() == [3]
    sent = study.clients.loc[study.clients["round"] == 1, "bytes_up"]
    numbers = 64 * 3 + 3 + 3 * 10 + 10  # of 8x8 pixels and 10 classes
    assert (sent == 4 * numbers).all()


def test_options_are_checked_without_torch():
    script = (
        "import json, sys; from fedsim.config.classifier import ClassifierConfig as C;"
        "[C(name=name).options() for name in C.family];"
        "print(json.dumps(sorted(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    loaded = json.loads(found.stdout)
    assert set(NETWORKS.values()) <= set(loaded)
    assert "torch" not in loaded
