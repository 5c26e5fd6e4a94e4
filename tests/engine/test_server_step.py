"""The server's step against independent arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fedsim
from fedsim.config.sections import ServerConfig
from fedsim.engine.server_step import server_step
from fedsim.errors import ConfigError
from fedsim.inputs.preflight import preflight
from tests.helpers import experiment, run, write_features


def steps(server: ServerConfig, changes: list[float]) -> list[float]:
    moments, out = {}, []
    for change in changes:
        step, moments = server_step({"w": torch.tensor([change])}, moments, server)
        out.append(float(step["w"]))
    return out


def test_the_mean_is_the_mean():
    assert steps(ServerConfig(), [1.0, 3.0]) == [1.0, 3.0]
    assert steps(ServerConfig(lr=0.5), [1.0, 3.0]) == [0.5, 1.5]


def test_momentum_as_sgd_does_it():
    """FedAvgM is SGD with momentum on the negative mean change."""
    w = torch.zeros(1, requires_grad=True)
    sgd, expected = torch.optim.SGD([w], lr=0.5, momentum=0.9), []
    for change in (1.0, -2.0, 0.5):
        before = w.detach().clone()
        w.grad = torch.tensor([-change])
        sgd.step()
        expected.append(float((w - before).detach()))
    got = steps(ServerConfig(optimizer="momentum", lr=0.5), [1.0, -2.0, 0.5])
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_adaptive_steps_as_in_the_paper(name: str):
    server = ServerConfig(optimizer=name, lr=0.1, momentum=0.8, beta2=0.9, epsilon=0.01)
    m = v = 0.0
    expected = []
    for d in (1.0, -2.0, 0.5):
        m = 0.8 * m + 0.2 * d
        v = 0.9 * v + 0.1 * d * d if name == "adam" else v - 0.1 * d * d * np.sign(v - d * d)
        expected.append(0.1 * m / (np.sqrt(v) + 0.01))
    assert steps(server, [1.0, -2.0, 0.5]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["cache_text", "fedavg_head"])
def test_runs_with_all_of_it_are_repeatable_and_finite(tmp_path: Path, method: str):
    losses = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        config = experiment(
            write_features(folder),
            method,
            server__optimizer="adam",
            server__lr=0.05,
            server__class_weighting=0.5,
            wire__compression="int8",
            train__logit_adjustment="log_prior",
            train__proximal_mu=0.1,
            train__lr_schedule="cosine",
            train__local_epochs=[3, 1],
        )
        study = fedsim.load(run(config, folder))
        losses.append(study.rounds.loss.tolist())
        trained = study.clients[study.clients["round"] > 0].groupby("round").num_steps.sum()
        assert trained[1] == 3 * trained[2] == 3 * trained[3]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        ("zero_shot", {"server__optimizer": "adam"}, "averages steps"),
        ("zero_shot", {"wire__compression": "int8"}, "wire.compression"),
    ],
)
def test_settings_without_a_use_are_refused(tmp_path: Path, method: str, settings, text: str):
    with pytest.raises(ConfigError, match=text):
        preflight([experiment(write_features(tmp_path), method, **settings)])


def test_every_client_is_measured_at_the_end(tmp_path: Path):
    config = experiment(write_features(tmp_path), partition__num_clients=3)
    study = fedsim.load(run(config, tmp_path))
    at_end = study.evaluations[study.evaluations["round"] == 3]
    for model in ("global", "personal"):
        mine = at_end[(at_end.scope == "client") & (at_end.model == model)]
        assert sorted(mine.client_id) == [0, 1, 2]
        spread = at_end[(at_end.scope == "global") & (at_end.model == model)].set_index("metric")
        of_clients = spread[spread.index.str.startswith("client_")].value
        assert of_clients["client_mean"] == pytest.approx(mine.value.mean())
        assert of_clients["client_std"] == pytest.approx(mine.value.std(ddof=0))
        assert of_clients["client_worst10"] == mine.value.min()
    pooled = at_end[(at_end.scope == "client") & (at_end.model == "global")]
    whole = at_end[(at_end.scope == "global") & (at_end.metric == "accuracy")]
    held = whole[whole.split == "client_holdout"].value.item()
    assert np.average(pooled.value, weights=pooled.num_samples) == pytest.approx(held)
