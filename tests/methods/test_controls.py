"""Floors, ceilings and the small relatives of the head and the cache."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedsim
from fedsim.config import Experiment
from fedsim.driver.traffic import Traffic, traffic
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.client_states import ClientStates
from fedsim.errors import ConfigError
from fedsim.inputs.preflight import preflight
from fedsim.methods import build_method, method_class
from fedsim.methods.base import Labelled, Method, Received
from fedsim.methods.training import train_one_by_one
from fedsim.params import Params, add, num_bytes, unstack
from tests.helpers import (
    batches_of,
    experiment,
    feature_arrays,
    local_data,
    rngs,
    run,
    synthetic_set,
    tiny_task,
    unit,
    write_features,
)

SIZES = (9, 1, 14)
MODELS = {"head": {}, "cache": {"cache__init": "random", "cache__images_per_class": 2}}


def config(method: str, **settings: Any) -> Experiment:
    return experiment("features.npz", method, **settings)


def built(made: Experiment, synthetic: Labelled | None = None) -> Method:
    return build_method(made.for_method(), tiny_task(made, synthetic=synthetic))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the cache that nobody trains ----------------------------------------------------------------


def test_tip_adapter_is_cachefl_before_its_first_round():
    synthetic, x = synthetic_set(), unit(9, 8, seed=5)
    logits = []
    for name in ("tip_adapter", "cachefl"):
        method = built(config(name, cache__images_per_class=3), synthetic)
        logits.append(method.predictor(method.setup(method.task, rng()))(x))
    assert torch.equal(*logits)
    cls = method_class("tip_adapter")
    made = config("tip_adapter")
    assert (
        cls.num_rounds(made.for_method()),
        cls.uses_clients,
        cls.needs_synthetic(made.for_method()),
    ) == (0, False, True)
    assert cls.sections == ("cache",)


# --- floors: everybody alone ---------------------------------------------------------------------


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_alone_is_each_clients_own_loop_over_all_rounds(model: str, optimizer: str):
    made = config(
        "local_only",
        options={"model": model},
        train__weight_decay=0.1,
        train__optimizer=optimizer,
        train__proximal_mu=0.05,
        **MODELS[model],
    )
    method = built(made)
    state = method.setup(method.task, rng())
    inputs, labels, rows = local_data(SIZES)
    message = method.constants(state) | method.message(state)
    kept: list[dict[str, Any]] = [{} for _ in SIZES]
    for number in (1, 2, 3):
        batches = batches_of(made.train, rows, inputs, labels, round=number)
        update, kept = method.client_update(message, batches, kept, rngs(batches))
        assert update.delta == {}
        assert num_bytes(update.delta) == num_bytes(method.message(state)) == 0
        assert method.aggregate(state, Received({}, round=number)) is state

    (name,) = kept[0]
    for c in range(len(SIZES)):
        own = {name: state[name]}
        for number in (1, 2, 3):
            batches = batches_of(made.train, rows, inputs, labels, clients=[c], round=number)

            def logits(params: Params, x: torch.Tensor) -> torch.Tensor:
                found = method.client_logits(message, params, x)
                assert found is not None
                return found

            own = add(own, unstack(train_one_by_one(own, logits, batches), 0))
        torch.testing.assert_close(kept[c][name], own[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(kept[c][name], state[name])
        x = unit(5, 8, seed=9)
        expected = method.predictor(state | own)(x)
        torch.testing.assert_close(method.predictor(state, kept[c])(x), expected)


@pytest.mark.parametrize("model", list(MODELS))
def test_who_never_trained_has_the_common_start(model: str):
    made = config("local_only", options={"model": model}, **MODELS[model])
    method, x = built(made), unit(5, 8, seed=9)
    state = method.setup(method.task, rng())
    start = method.predictor(state)(x)
    assert torch.equal(method.predictor(state, {})(x), start)
    federated = built(config("m", use={"head": "fedavg_head", "cache": "cachefl"}[model],
                             **MODELS[model]))  # fmt: skip
    assert torch.equal(federated.predictor(federated.setup(federated.task, rng()))(x), start)


def test_a_ghost_beside_a_lone_client_changes_nothing():
    made = config("local_only")
    method = built(made)
    state = method.setup(method.task, rng())
    inputs, labels, rows = local_data(SIZES)
    message = method.constants(state) | method.message(state)
    found = []
    for clients in ((2, 0), (2,)):
        batches = batches_of(made.train, rows, inputs, labels, clients=clients)
        _, kept = method.client_update(message, batches, [{}, {}], rngs(batches))
        found.append(kept)
    assert torch.equal(found[0][0]["head"], found[1][0]["head"])
    assert torch.equal(found[1][1]["head"], state["head"])  # the ghost


def test_a_clients_state_holds_its_own_model_and_no_more():
    made = config("local_only")
    method = built(made)
    state = method.setup(method.task, rng())
    inputs, labels, rows = local_data(SIZES)
    batches = batches_of(made.train, rows, inputs, labels)
    _, kept = method.client_update(method.constants(state), batches, [{}] * 3, rngs(batches))
    head = kept[1]["head"]  # a checkpoint stores a tensor's whole memory
    assert head.untyped_storage().nbytes() == head.numel() * 4


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_figures_of_everybody_alone_are_means_over_their_models(tmp_path, participation: float):
    made = experiment(
        write_features(tmp_path), "local_only", train__participation=participation, train__rounds=2
    )
    study = fedsim.load(run(made, tmp_path))
    arrays = feature_arrays()
    snapshot = CheckpointFolder(tmp_path, made.run_id).latest()
    assert snapshot is not None
    owned = ClientStates(CheckpointFolder(tmp_path, made.run_id).path)
    owned.restore(snapshot["client_states"])
    assert (len(owned) == 6) == (participation == 1)
    correct = []
    for c in range(6):
        start = {"head": torch.from_numpy(arrays["text_features"])}
        head = (owned[c].method if c in owned else start)["head"].numpy()
        correct.append(((arrays["x_test"] @ head.T).argmax(1) == arrays["y_test"]).mean())
    rounds = study.rounds.set_index("round")
    assert rounds["accuracy"][2] == pytest.approx(np.mean(correct), abs=1e-9)
    start = arrays["text_features"].nbytes
    assert rounds["bytes_up"].sum() == 0
    assert rounds["bytes_down"].sum() == start * len(owned)
    assert traffic(made) == Traffic(2, 0, 0, start)


def test_a_ceilings_dry_run_sends_nothing(tmp_path):
    made = experiment(write_features(tmp_path), "centralised_head", train__rounds=2)
    assert traffic(made) == Traffic(2, 0, 0, 0)
    rounds = fedsim.load(run(made, tmp_path)).rounds
    assert rounds[["bytes_up", "bytes_down"]].sum().tolist() == [0, 0]
    assert rounds["num_clients_ok"].tolist() == [0, 1, 1]


def test_alone_asks_for_generated_images_only_for_a_cache():
    cls = method_class("local_only")
    for model, wanted in (("head", False), ("cache", True)):
        made = config("local_only", options={"model": model})
        assert cls.needs_synthetic(made.for_method()) is wanted
        assert cls.needs_public(made.for_method()) is False
    shots = config("local_only", options={"model": "cache"}, cache__init="public_shots")
    assert (cls.needs_synthetic(shots.for_method()), cls.needs_public(shots.for_method())) == (
        False,
        True,
    )
    assert cls.personal


# --- ceilings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "of", "trained"),
    [("centralised_head", "fedavg_head", "head"), ("centralised_cache", "cachefl", "keys")],
)
def test_a_ceiling_is_the_federated_method_with_one_client(name: str, of: str, trained: str):
    assert method_class(name).pooled
    assert not method_class(of).pooled
    settings = MODELS["cache"] if trained == "keys" else {}
    made = config("m", use=name, train__batch_size=64, train__local_epochs=1, train__momentum=0.0,
                  **settings)  # fmt: skip
    method = built(made)
    state = method.setup(method.task, rng())
    inputs, labels, rows = local_data((20,))
    message = method.constants(state) | method.message(state)
    batches = batches_of(made.train, rows, inputs, labels)
    update, _ = method.client_update(message, batches, [{}, {}], rngs(batches))
    after = method.aggregate(state, Received(unstack(update.delta, 0)))
    # One step of full-batch gradient descent.
    leaf = state[trained].clone().requires_grad_()
    F.cross_entropy(method.predictor(state | {trained: leaf})(inputs), labels).backward()
    torch.testing.assert_close(after[trained], state[trained] - made.train.lr * leaf.grad)


# --- the proximal term ---------------------------------------------------------------------------


def test_fedprox_without_its_term_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"methods\.fedprox_head: .*set train\.proximal_mu above"):
        preflight([config("fedprox_head")])
    made = config("fedprox_head")
    with pytest.raises(ConfigError, match="use fedavg_head"):
        build_method(made.for_method(), tiny_task(made))


def test_preflight_accepts_fedprox_with_its_term(tmp_path):
    preflight([experiment(write_features(tmp_path), "fedprox_head", train__proximal_mu=0.01)])


def test_fedprox_holds_clients_near_what_was_sent():
    inputs, labels, rows = local_data(SIZES)
    lengths = []
    for mu in (0.0, 1e-3, 5.0):
        made = config("fedprox_head" if mu else "fedavg_head", train__proximal_mu=mu)
        method = built(made)
        state = method.setup(method.task, rng())
        batches = batches_of(made.train, rows, inputs, labels)
        update, _ = method.client_update(method.message(state), batches, [{}] * 3, rngs(batches))
        lengths.append(update.delta["head"].norm(dim=(1, 2)))
    assert (lengths[2] < lengths[1]).all()
    assert (lengths[1] < lengths[0]).all()
