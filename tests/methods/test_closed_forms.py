"""Methods that are one exact sum over clients, against NumPy on the pooled data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

import fedsim
from fedsim.driver.traffic import traffic
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.errors import ConfigError
from fedsim.methods import build_method
from fedsim.methods.base import Method, Received, State, Update
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.shared.statistics import ridge, square, triangle
from fedsim.params import ExactSum, num_bytes, unstack
from tests.helpers import (
    batches_of,
    experiment,
    local_data,
    rngs,
    run,
    tiny_task,
    unit,
    write_features,
)

NUM_CLASSES, DIM, SCALE = 4, 8, 20.0
SIZES = (9, 1, 14, 5, 3)
CACHE = {"cache__init": "random", "cache__images_per_class": 3, "cache__sharpness": 2.0}
ONE_ROUND: dict[str, dict[str, Any]] = {"afl": {}, "gda": {}, "cachefl_analytic": CACHE}
SOLVED = {"afl": "head", "gda": "weight", "cachefl_analytic": "values"}


def built(method: str, **settings: Any) -> Method:
    made = experiment("features.npz", method, **settings)
    return build_method(made.for_method(), tiny_task(made, NUM_CLASSES, DIM))


def started(method: Method) -> State:
    return method.setup(method.task, torch.Generator().manual_seed(0))


def update_of(method: Method, state: State, rows: Sequence[np.ndarray], **data: Any) -> Update:
    batches = batches_of(method.config.train, rows, data["inputs"], data["labels"])
    message = method.constants(state) | method.message(state)
    update, _ = method.client_update(message, batches, [{}] * batches.num_clients, rngs(batches))
    return update


def one_round(
    method: Method, rows: Sequence[np.ndarray], group_size: int = 3, **data: Any
) -> State:
    """What the engine does with one round: groups, exact sums, the server's step."""
    state = started(method)
    total = ExactSum(sum(map(len, rows)), len(rows))
    for at in range(0, len(rows), group_size):
        group = rows[at : at + group_size]
        update = update_of(method, state, group, **data)
        assert update.linear
        assert total.refused(update.delta, update.weight) == []
        real = slice(len(group))
        total.add({k: v[real] for k, v in update.delta.items()}, update.weight[real])
    return method.aggregate(state, Received(total.mean(), num_clients=total.num_clients, round=1))


def pooled(seed: int = 0, num_classes: int = NUM_CLASSES) -> dict[str, torch.Tensor]:
    inputs, labels, _ = local_data((sum(SIZES),), num_classes, (DIM,), seed)
    return {"inputs": inputs, "labels": labels}


def split(labels: torch.Tensor, how: str) -> list[np.ndarray]:
    rows, y = np.arange(len(labels)), labels.numpy()
    return {
        "all to one": lambda: [rows],
        "a class each": lambda: [rows[y == c] for c in np.unique(y)],
        "a sample each": lambda: [rows[i : i + 1] for i in rows],
        "unequal": lambda: np.split(rows, np.cumsum(SIZES)[:-1]),
    }[how]()


# --- independent references ----------------------------------------------------------------------


def numpy_ridge(x: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """Least squares with `sqrt(lambda)` rows appended instead of normal equations."""
    penalty = np.sqrt(ridge * np.square(x).sum() / x.shape[1])
    rows = np.vstack([x, penalty * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.vstack([targets, np.zeros((x.shape[1], targets.shape[1]))]))[0]


def numpy_gda(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's classifier: class means, and the precision of its equation on shrinkage."""
    means = np.stack([x[y == c].mean(0) for c in range(NUM_CLASSES)])
    covariance = np.cov(x - means[y], rowvar=False)
    n, d = x.shape
    precision = d * np.linalg.pinv((n - 1) * covariance + np.trace(covariance) * np.eye(d))
    return means @ precision, -0.5 * np.einsum("cd,de,ce->c", means, precision, means)


def numpy_of(data: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = data["inputs"].double().numpy(), data["labels"].numpy()
    return x, y, np.eye(NUM_CLASSES)[y]


def text_of(method: Method) -> np.ndarray:
    assert method.task.text_features is not None
    return method.task.text_features.double().numpy()


@pytest.mark.parametrize("text", ["beside", "residual", "none"])
def test_afl_is_ridge_regression_on_the_pooled_data(text: str):
    method = built("afl", options={"text": text, "ridge": 0.05, "alpha": 7.0})
    data, queries = pooled(), unit(6, DIM, seed=5)
    x, _, targets = numpy_of(data)
    known = SCALE * queries.double().numpy() @ text_of(method).T
    if text == "residual":
        targets = targets - softmax(SCALE * x @ text_of(method).T, axis=1)
    learnt = 7.0 * queries.double().numpy() @ numpy_ridge(x, targets, 0.05)
    state = one_round(method, split(data["labels"], "unequal"), **data)
    expected = learnt if text == "none" else known + learnt
    np.testing.assert_allclose(method.predictor(state)(queries).numpy(), expected, atol=2e-5)


def test_gda_is_the_papers_classifier_on_the_pooled_data():
    method = built("gda", options={"alpha": 0.3})
    data, queries = pooled(), unit(6, DIM, seed=5)
    x, y, _ = numpy_of(data)
    weight, bias = numpy_gda(x, y)
    state = one_round(method, split(data["labels"], "unequal"), **data)
    q = queries.double().numpy()
    expected = SCALE * q @ text_of(method).T + 0.3 * (q @ weight.T + bias)
    np.testing.assert_allclose(method.predictor(state)(queries).numpy(), expected, rtol=1e-5)


def test_shrinkage_scales_the_papers():
    data = pooled()
    rows = split(data["labels"], "unequal")
    scatter = []
    for shrinkage in (1.0, 3.0):
        method = built("gda", options={"shrinkage": shrinkage})
        state = one_round(method, rows, **data)
        x, y, _ = numpy_of(data)
        means = np.stack([x[y == c].mean(0) for c in range(NUM_CLASSES)])
        weight = state["weight"].double().numpy()
        # weight S = d means, where S = scatter within classes + shrinkage * share * identity
        scatter.append(DIM * np.linalg.lstsq(weight, means)[0])
        within = (x - means[y]).T @ (x - means[y])
        share = np.trace(within) / (len(x) - 1)
        expected = weight @ (within + shrinkage * share * np.eye(DIM)) / DIM
        np.testing.assert_allclose(expected, means, atol=1e-5)
    assert not np.allclose(*scatter)


@pytest.mark.parametrize("text", ["beside", "residual"])
def test_analytic_values_are_ridge_regression_on_the_activations(text: str):
    options = {"text": text, "ridge": 0.02}
    method = built("cachefl_analytic", options=options, cache__residual_ratio=6.0, **CACHE)
    data, queries = pooled(), unit(6, DIM, seed=5)
    x, _, targets = numpy_of(data)
    keys = started(method)["keys"].double().numpy()
    if text == "residual":
        targets = targets - softmax(SCALE * x @ text_of(method).T, axis=1)

    def activations(f: np.ndarray) -> np.ndarray:
        distance = np.square(f[:, None] - keys[None]).sum(-1)  # of unit vectors: 2 - 2 cosine
        return np.exp(-2.0 * distance / 2)

    values = numpy_ridge(activations(x), targets, 0.02)
    state = one_round(method, split(data["labels"], "unequal"), **data)
    q = queries.double().numpy()
    expected = SCALE * q @ text_of(method).T + 6.0 * activations(q) @ values
    np.testing.assert_allclose(method.predictor(state)(queries).numpy(), expected, atol=2e-4)


# --- the split does not matter -------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ONE_ROUND))
@pytest.mark.parametrize("how", ["a class each", "a sample each", "unequal"])
@pytest.mark.parametrize("group_size", [1, 3])
def test_the_split_does_not_matter(name: str, how: str, group_size: int):
    method, data = built(name, **ONE_ROUND[name]), pooled()
    once = one_round(method, split(data["labels"], "all to one"), **data)
    found = one_round(method, split(data["labels"], how), group_size, **data)
    assert not torch.equal(found[SOLVED[name]], torch.zeros_like(found[SOLVED[name]]))
    torch.testing.assert_close(found[SOLVED[name]], once[SOLVED[name]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", list(ONE_ROUND))
def test_a_run_is_the_same_at_any_skew(tmp_path: Path, name: str):
    own = dict(ONE_ROUND[name])
    if name == "cachefl_analytic":
        own |= {"options": {"finetune": False}}
    data, found = write_features(tmp_path, dim=32, per_class=40), []
    for scheme, alpha in (("iid", None), ("dirichlet_label", 0.05), ("dirichlet_label", 1.0)):
        made = experiment(
            data,
            name,
            partition__scheme=scheme,
            partition__dirichlet_alpha=alpha,
            partition__num_clients=7,
            evaluation__holdout_fraction=0.0,  # what is held out would depend on the split
            **own,
        )
        study = fedsim.load(run(made, tmp_path / f"{scheme} {alpha}"))
        rounds = study.rounds
        assert rounds["round"].tolist() == [0, 1]
        assert study.runs["num_rounds"].item() == 1
        assert set(study.events["kind"]) <= {"partition"}  # a client's smallest size was mended
        snapshot = CheckpointFolder(tmp_path / f"{scheme} {alpha}", made.run_id).latest()
        assert snapshot is not None
        sent = traffic(made)
        assert rounds["bytes_up"][1] == 7 * sent.up
        assert rounds["bytes_down"][1] == 7 * (sent.down + sent.once)
        assert sent.early == 0
        found.append((rounds["accuracy"].tolist(), snapshot["state"][SOLVED[name]]))
    (accuracy, solved), *others = found
    assert accuracy[1] > 0.9
    for theirs, also in others:
        assert theirs == accuracy
        torch.testing.assert_close(also, solved, rtol=1e-5, atol=1e-6)


def test_sums_stay_double_until_they_are_solved():
    """Rounded to float32 on the way, an ill-conditioned problem would depend on the split."""
    made = {"cache__init": "random", "cache__images_per_class": 6, "cache__sharpness": 0.3}
    method = built("cachefl_analytic", options={"ridge": 1e-6}, **made)
    data = pooled()
    exact = one_round(method, split(data["labels"], "all to one"), **data)["values"]
    assert exact.abs().max() > 1
    for how in ("a class each", "a sample each"):
        found = one_round(method, split(data["labels"], how), **data)["values"]
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


# --- what clients send ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ONE_ROUND))
def test_ghosts_and_empty_places_send_nothing(name: str):
    method, data = built(name, **ONE_ROUND[name]), pooled()
    lone = update_of(method, started(method), [np.arange(5)], **data)
    assert lone.weight.tolist() == [1.0, 0.0]
    assert all(not delta[1].any() for delta in lone.delta.values())
    pair = update_of(method, started(method), [np.arange(5), np.arange(5, 25)], **data)
    for key, value in pair.delta.items():
        torch.testing.assert_close(value[0], lone.delta[key][0])


@pytest.mark.parametrize(("name", "m"), [("afl", DIM), ("gda", DIM), ("cachefl_analytic", 12)])
def test_half_a_symmetric_matrix_is_sent_in_doubles(name: str, m: int):
    method, data = built(name, **ONE_ROUND[name]), pooled()
    update = update_of(method, started(method), [np.arange(5)], **data)
    counts = NUM_CLASSES if name == "gda" else 0
    numbers = m * (m + 1) // 2 + m * NUM_CLASSES + counts
    assert num_bytes(unstack(update.delta, 0)) == 8 * numbers


def test_half_of_a_matrix_is_all_of_it():
    half = torch.arange(6.0)
    matrix = square(half, 3)
    assert matrix.tolist() == [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
    assert torch.equal(triangle(matrix.expand(2, 3, 3)), half.expand(2, 6))


@pytest.mark.parametrize("name", list(ONE_ROUND))
def test_when_every_client_fails_nothing_changes(name: str):
    method = built(name, **ONE_ROUND[name])
    state = started(method)
    after = method.aggregate(state, Received({}, round=1))
    x = unit(5, DIM, seed=5)
    assert torch.equal(method.predictor(after)(x), method.predictor(state)(x))
    assert set(method.message(after)) == set(method.message(state))


@pytest.mark.parametrize("name", list(ONE_ROUND))
def test_before_its_round_there_is_only_the_text(name: str):
    method = built(name, **ONE_ROUND[name])
    x = unit(5, DIM, seed=5)
    expected = SCALE * x.double().numpy() @ text_of(method).T
    logits = method.predictor(started(method))(x)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-5, atol=1e-5)


# --- edges ---------------------------------------------------------------------------------------


def test_a_class_that_nobody_holds_has_the_mean_of_all():
    data = pooled()
    data["labels"] = data["labels"].clamp_max(NUM_CLASSES - 2)
    for name in ONE_ROUND:
        method = built(name, **ONE_ROUND[name])
        state = one_round(method, split(data["labels"], "a class each"), **data)
        assert method.predictor(state)(unit(5, DIM)).isfinite().all()
    method = built("gda")
    state = one_round(method, split(data["labels"], "unequal"), **data)
    x, y, _ = numpy_of(data)
    means = np.stack([x[y == c].mean(0) if (y == c).any() else x.mean(0) for c in range(4)])
    within = (x - means[y]).T @ (x - means[y])
    matrix = within + np.trace(within) / (len(x) - 1) * np.eye(DIM)
    expected = DIM * np.linalg.solve(matrix, means.T).T
    np.testing.assert_allclose(state["weight"].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_classes_without_any_spread_leave_the_text_alone():
    method = built("gda")
    data = {"inputs": unit(4, DIM), "labels": torch.arange(4)}  # one sample of each class
    state = one_round(method, [np.arange(4)], **data)
    assert not state["weight"].any()
    assert not state["bias"].any()


def test_regressors_that_are_all_zero_have_no_weights():
    assert torch.equal(ridge(torch.zeros(3, 3), torch.ones(3, 2), 0.1), torch.zeros(3, 2).double())


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [("afl", "ridge", 0.0), ("gda", "shrinkage", -1.0), ("cachefl_analytic", "text", "none")],
)
def test_impossible_options_are_refused(method: str, option: str, value: Any):
    with pytest.raises(ConfigError, match=rf"methods\.{method}\.options: .*{option}"):
        built(method, options={option: value})


@pytest.mark.parametrize("name", ["afl", "gda"])
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_one_round_is_all_there_is(name: str, rounds: int):
    method = built(name, train__rounds=rounds)
    assert method.num_rounds(method.config) == min(1, rounds)


# --- after the closed form: keys are trained -----------------------------------------------------


def test_analytic_values_are_followed_by_cachefls_rounds():
    data = pooled()
    adjusted = {"train__logit_adjustment": "log_prior", **CACHE}
    method = built("cachefl_analytic", **adjusted)
    state = one_round(method, split(data["labels"], "unequal"), **data)
    assert set(method.message(state)) == {"keys", "values"}
    update = update_of(method, state, split(data["labels"], "unequal"), **data)
    plain = CacheFL(method.task, None)  # type: ignore[arg-type]
    expected = update_of(plain, state, split(data["labels"], "unequal"), **data)
    assert torch.equal(update.delta["keys"], expected.delta["keys"])
    assert torch.equal(update.weight, expected.weight)
    assert set(update.delta) == {"keys"}
    mean = {"keys": torch.full_like(state["keys"], 0.5)}
    after = method.aggregate(state, Received(mean, num_clients=5, round=2))
    torch.testing.assert_close(after["keys"], state["keys"] + 0.5)
    assert torch.equal(after["values"], state["values"])


@pytest.mark.parametrize("trainable", ["keys_values", "keys_scales"])
def test_what_a_cache_trains_beside_its_keys_is_trained_after_the_closed_form(trainable: str):
    data = pooled()
    method = built("cachefl_analytic", cache__trainable=trainable, **CACHE)
    rows = split(data["labels"], "unequal")
    assert set(method.message(started(method))) == {"keys"}
    state = one_round(method, rows, **data)
    update = update_of(method, state, rows, **data)
    assert set(update.delta) == {"keys", trainable.removeprefix("keys_")}
    assert all(delta.any() for delta in update.delta.values())


@pytest.mark.parametrize(("finetune", "rounds"), [(True, 3), (False, 1)])
def test_the_second_step_can_be_left_out(tmp_path: Path, finetune: bool, rounds: int):
    own = CACHE | {"options": {"finetune": finetune}, "cache__residual_ratio": 10.0}
    own |= {"train__lr": 1e-3}
    made = experiment(write_features(tmp_path), "cachefl_analytic", **own)
    study = fedsim.load(run(made, tmp_path))
    table, sent = study.rounds.set_index("round"), traffic(made)
    assert table.index.tolist() == list(range(rounds + 1))
    assert table["loss"].is_monotonic_decreasing
    assert study.events.empty
    clients = study.clients.query("round > 0")
    assert clients.query("round > 1")["loss_after"].notna().all()
    # Bytes of both phases, also in a dry run.
    m, keys = 12, 4 * 12 * DIM
    sums = 8 * (m * (m + 1) // 2 + m * 4)
    assert (clients.query("round == 1")["bytes_up"] == sums).all()
    assert (clients.query("round > 1")["bytes_up"] == keys).all()
    assert table["bytes_down"][1] == 6 * (keys + 4 * 4 * DIM)
    assert (table["bytes_down"][2:] == 6 * (keys + 4 * 12 * 4)).all()
    total = 6 * (sent.num_rounds * (sent.up + sent.down) + sent.early + sent.once)
    assert table[["bytes_up", "bytes_down"]].to_numpy().sum() == total


def test_operations_are_those_of_what_is_done(tmp_path: Path):
    """Sums take one pass whatever the local epochs; training takes them all."""
    data, flops = write_features(tmp_path), []
    for epochs in (1, 3):
        made = experiment(data, "cachefl_analytic", train__local_epochs=epochs, **CACHE)
        rounds = fedsim.load(run(made, tmp_path / str(epochs))).rounds.set_index("round")
        flops.append(rounds["train_flops"])
    assert flops[0][1] == flops[1][1] > 0
    assert flops[1][2] == 3 * flops[0][2] > 0
    assert flops[0][2] != flops[0][1]


# --- real features -------------------------------------------------------------------------------


def caltech(shared_data: Path, method: str, **settings: Any) -> Any:
    given: dict[str, Any] = {
        "data__shots": 16,
        "data__only_text_classes": True,
        "models__logit_scale": None,
        "partition__num_clients": 10,
        "partition__dirichlet_alpha": 0.05,
        "train__rounds": 1,
    }
    path = shared_data / "clip_real_bundle" / "caltech101_vitb32.npz"
    return experiment(path, method, **(given | settings))


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("afl", {"ridge": 0.03, "alpha": 20.0}, 0.965),
        ("gda", {"alpha": 0.1}, 0.955),
        ("cachefl_analytic", {"ridge": 1e-4}, 0.96),
    ],
)
def test_one_round_on_real_features(
    tmp_path: Path, shared_data: Path, name: str, options: dict[str, Any], least: float
):
    """Far above zero-shot (92.5 %), on the most skewed split."""
    cache = {"cache__init": "random", "cache__sharpness": 2.0, "cache__residual_ratio": 20.0}
    own = cache if name == "cachefl_analytic" else {}
    rounds = fedsim.load(
        run(caltech(shared_data, name, options=options, **own), tmp_path)
    ).rounds.set_index("round")
    assert rounds["accuracy"][0] == pytest.approx(0.925, abs=0.001)
    assert rounds["accuracy"][1] > least
