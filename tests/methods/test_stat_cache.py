"""The statistics cache against NumPy on pooled data, and its indifference to the partition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import ConfigError
from fedsim.methods import build_method, check_options, method_class
from fedsim.methods.shared.statistics import ridge, square, triangle
from fedsim.models.cache import cache_logits
from tests.helpers import (
    batches_of,
    experiment,
    federation,
    local_data,
    run,
    tiny_task,
    unit,
    write_features,
)


def settings(**more: Any) -> dict[str, Any]:
    return {
        "evaluation__holdout_fraction": 0.0,
        "train__rounds": 2,
        "cache__images_per_class": 3,
        "cache__residual_ratio": 20.0,
        "options": {"ridge": 0.01, "shrinkage": 0.2},
    } | more


def test_triangles_and_squares_are_inverse():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    symmetric = matrix + matrix.T
    assert torch.equal(square(triangle(symmetric), 6), symmetric)


def test_ridge_is_ridge():
    from sklearn.linear_model import Ridge

    x, t = unit(30, 5).double(), unit(30, 3, seed=1).double()
    second, targets = x.T @ x / 30, x.T @ t / 30
    strength = 0.1
    damping = strength * float(second.trace()) / 5 * 30  # scikit-learn sums instead of averaging
    expected = Ridge(alpha=damping, fit_intercept=False).fit(x.numpy(), t.numpy()).coef_.T
    np.testing.assert_allclose(ridge(second, targets, strength).numpy(), expected, rtol=1e-9)


def pooled(folder: Path, **more: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A run's last state, and the arrays it was computed from."""
    made = federation(experiment(write_features(folder), "stat_cache", **settings(**more)), folder)
    made.setup()
    while not made.finished:
        made.step()
    arrays = {k: np.array(v) for k, v in made.data.arrays.items()}
    made.finish()
    return made, arrays


@pytest.mark.parametrize("links", [False, True])
def test_the_closed_form_on_pooled_data(tmp_path: Path, links: bool):
    options = {"ridge": 0.01, "shrinkage": 0.2, "links": links}
    made, arrays = pooled(tmp_path, options=options)
    x, y = arrays["train_inputs"].astype(float), arrays["train_labels"]
    n, d = x.shape
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    residual = x - means[y]
    covariance = residual.T @ residual / n
    covariance += 0.2 * np.trace(covariance) / d * np.eye(d)
    weights = means @ np.linalg.inv(covariance)
    state = made._state
    np.testing.assert_allclose(state["weights"].numpy(), weights, rtol=1e-3, atol=1e-3)
    bias = -0.5 * (weights * means).sum(1)
    np.testing.assert_allclose(state["bias"].numpy(), bias, rtol=1e-3, atol=1e-3)
    keys = state["keys"].numpy().astype(float)
    assert keys.shape == (12, d)
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-5)

    def seen(f: np.ndarray) -> np.ndarray:
        near = np.exp(-5.0 * (1 - f @ keys.T))
        return np.concatenate([near, f], axis=1) if links else near

    a = seen(x)
    m = a.shape[1]
    gram = a.T @ a + 0.01 * np.trace(a.T @ a) / m * np.eye(m)
    values = np.linalg.solve(gram, a.T @ np.eye(4)[y])
    np.testing.assert_allclose(state["values"].numpy(), values, rtol=1e-3, atol=1e-3)
    test = arrays["test_inputs"].astype(float)
    expected = test @ weights.T + bias + 20 * seen(test) @ values
    got = made.method.predictor(state)(torch.tensor(test).float()).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-2)


def test_the_same_under_any_partition(tmp_path: Path):
    states = []
    for name, split in {
        "iid": {"scheme": "iid", "num_clients": 6},
        "skewed": {"scheme": "dirichlet_label", "num_clients": 6, "dirichlet_alpha": 0.05},
    }.items():
        (tmp_path / name).mkdir()
        states.append(pooled(tmp_path / name, partition=split)[0]._state)
    for name in ("weights", "bias", "keys", "values"):
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("links", [False, True])
def test_later_rounds_fine_tune_the_keys_alone(tmp_path: Path, links: bool):
    options = {"links": links}
    made, _ = pooled(tmp_path, train__rounds=2, options=options)
    (tmp_path / "more").mkdir()
    tuned, _ = pooled(tmp_path / "more", train__rounds=4, train__lr=1e-4, options=options)
    assert torch.equal(made._state["values"], tuned._state["values"])
    assert not torch.equal(made._state["keys"], tuned._state["keys"])


@pytest.mark.parametrize("links", [False, True])
def test_bytes_are_those_of_triangles(tmp_path: Path, links: bool):
    options = {"links": links}
    config = experiment(write_features(tmp_path), "stat_cache", **settings(options=options))
    rounds = fedsim.load(run(config, tmp_path)).rounds.set_index("round")
    d, n, keys, clients = 8, 4, 12, 6
    m = keys + d * links
    assert rounds.bytes_up[1] == clients * 8 * (n + n * d + d * (d + 1) // 2)
    assert rounds.bytes_up[2] == clients * 8 * (n * m + m * (m + 1) // 2)
    assert rounds.bytes_down[1] == 0
    assert rounds.bytes_down[2] == clients * 4 * keys * d


@pytest.mark.parametrize("keys", ["gaussian", "cache"])
@pytest.mark.parametrize("prior", ["gaussian", "text"])
def test_every_part_can_be_left_out(tmp_path: Path, prior: str, keys: str):
    options = {"prior": prior, "keys": keys}
    made, arrays = pooled(tmp_path, options=options, cache__init="text")
    logits = made.method.predictor(made._state)(torch.tensor(arrays["test_inputs"]))
    assert (logits.argmax(1).numpy() == arrays["test_labels"]).mean() > 0.6
    assert (len(made._state["keys"]) == 4) == (keys == "cache")


def test_one_hot_values_are_cachefl_s_cache_beside_the_discriminant(tmp_path: Path):
    options = {"values": "one_hot"}
    made, arrays = pooled(tmp_path, options=options, train__rounds=1)
    state, f = made._state, torch.tensor(arrays["test_inputs"])
    labels = torch.arange(4).repeat_interleave(len(state["keys"]) // 4)
    assert torch.equal(state["values"], torch.nn.functional.one_hot(labels).float())
    cache = made.config.cache
    expected = f @ state["weights"].T + state["bias"] + cache.residual_ratio * cache_logits(
        f, state["keys"], state["values"], cache.sharpness
    )  # fmt: skip
    torch.testing.assert_close(made.method.predictor(state)(f), expected)
    config = experiment("x.npz", "stat_cache", options={"values": "one_hot", "links": True})
    with pytest.raises(ConfigError, match="leave values one_hot out"):
        check_options(config.for_method(), method_class("stat_cache"))


def test_one_round_is_too_few():
    config = experiment("features.npz", "stat_cache", train__rounds=1)
    with pytest.raises(ConfigError, match="two rounds"):
        check_options(config.for_method(), method_class("stat_cache"))


def test_a_class_nobody_holds_keeps_its_text_direction():
    config = experiment("features.npz", "stat_cache", train__rounds=2)
    method = build_method(config.for_method(), tiny_task(config))
    state = method.setup(method.task, torch.Generator())
    inputs, _, rows = local_data([40])
    batches = batches_of(config.train, rows, inputs, torch.zeros(40, dtype=torch.int64))
    update, _ = method.client_update({}, batches, [{}, {}], [])
    from fedsim.methods.base import Received

    means = method.aggregate(
        state, Received({k: v[0] for k, v in update.delta.items()}, num_clients=1)
    )["means"]
    cosine = torch.nn.functional.cosine_similarity(means[1:], state["text"][1:].double())
    torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64))
