"""The shipped methods: what their logits, starts and server steps are."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config import Experiment
from fedsim.engine.round import LocalExecutor
from fedsim.errors import ConfigError
from fedsim.methods import METHODS, build_method, check_options, method_class
from fedsim.methods.base import Labelled, Method, Received, Task
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.synthetic_only import SyntheticOnly
from fedsim.methods.training import train_one_by_one
from fedsim.models.cache import cache_logits, text_logits
from fedsim.params import stack
from tests.helpers import batches_of, experiment, local_data, rngs, synthetic_set, tiny_task, unit


def config(method: str, **settings: Any) -> Experiment:
    return experiment("features.npz", method, **settings)


def cachefl(init: str, **settings: Any) -> Experiment:
    name = "cachefl" if init == "generated" else f"cache_{init}"
    return config(name, use="cachefl", cache__init=init, **settings)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the cache model -----------------------------------------------------------------------------


def tip_adapter(
    f: np.ndarray, keys: np.ndarray, values: np.ndarray, beta: float, alpha: float, text: np.ndarray
) -> np.ndarray:
    """Tip-Adapter's logits, sample by sample and key by key."""
    logits = np.zeros((len(f), values.shape[1]))
    for i in range(len(f)):
        for k in range(len(keys)):
            logits[i] += alpha * np.exp(-beta * (1 - np.dot(f[i], keys[k]))) * values[k]
        for c in range(len(text)):
            logits[i, c] += 20.0 * np.dot(f[i], text[c])
    return logits


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.0), (0.0, 5.0), (3.0, 0.5), (1.0, 20.0)])
def test_logits_are_tip_adapters(alpha: float, beta: float):
    made = cachefl("random", cache__residual_ratio=alpha, cache__sharpness=beta)
    method = CacheFL(tiny_task(made), None)  # type: ignore[arg-type]
    state = method.setup(method.task, rng())
    f = unit(7, 8, seed=5)
    expected = tip_adapter(
        *(t.double().numpy() for t in (f, state["keys"], state["values"])),
        beta,
        alpha,
        state["text"].double().numpy(),
    )
    np.testing.assert_allclose(method.predictor(state)(f).numpy(), expected, rtol=1e-4, atol=1e-4)
    # The same over the client axis, which is what clients train.
    stacked = {"keys": state["keys"].repeat(3, 1, 1)}
    logits = method.client_logits(state, stacked, f.repeat(3, 1, 1))
    np.testing.assert_allclose(logits[2].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_cache_are_those_of_finite_differences():
    f, values = unit(5, 4, seed=1).double(), torch.eye(3).double()[[0, 1, 1, 2]]
    keys = unit(4, 4, seed=2).double().requires_grad_()
    y = torch.tensor([0, 1, 2, 0, 1])

    def loss(k: Tensor) -> Tensor:
        return F.cross_entropy(cache_logits(f, k, values, 5.0), y)

    (gradient,) = torch.autograd.grad(loss(keys), keys)
    step = 1e-6
    for i in range(4):
        for j in range(4):
            moved = torch.zeros(4, 4).double()
            moved[i, j] = step
            slope = (loss(keys + moved) - loss(keys - moved)).item() / (2 * step)
            assert gradient[i, j].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_the_cache_broadcasts_over_clients():
    f, keys = unit(3, 6, 8, seed=1), unit(3, 5, 8, seed=2)
    values, text = torch.eye(4)[[0, 1, 2, 3, 3]], unit(4, 8)
    both = cache_logits(f, keys, values, 5.0) + text_logits(f, text, 20.0)
    for c in range(3):
        alone = cache_logits(f[c], keys[c], values, 5.0) + text_logits(f[c], text, 20.0)
        torch.testing.assert_close(both[c], alone)


# --- starts of the cache -------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["generated", "text", "random", "public_shots"])
def test_caches_start_balanced_and_of_unit_length(init: str):
    made, k = cachefl(init, cache__images_per_class=3), 1 if init == "text" else 3
    parts = {"generated": "synthetic", "public_shots": "public"}
    given = {parts[init]: synthetic_set(per_class=3)} if init in parts else {}
    task = tiny_task(made, **given)
    method = CacheFL(task, None)  # type: ignore[arg-type]
    state = method.setup(task, rng())
    assert state["keys"].shape == (4 * k, 8)
    torch.testing.assert_close(state["keys"].norm(dim=1), torch.ones(4 * k))
    assert state["values"].dtype == state["keys"].dtype
    labels = torch.arange(4).repeat_interleave(k)
    assert torch.equal(state["values"], F.one_hot(labels, 4).float())
    if init == "text":
        assert torch.equal(state["keys"], task.text_features)
    if given:
        assert torch.equal(state["keys"], next(iter(given.values())).inputs)
    state["keys"].add_(1.0)  # the task's own tensors are not the state's
    again = method.setup(task, rng())["keys"].norm(dim=1)
    torch.testing.assert_close(again, torch.ones(4 * k))


@pytest.mark.parametrize(
    ("k", "fraction", "available", "real"),
    [(4, 0.5, 4, 2), (4, 0.01, 4, 1), (4, 0.99, 4, 3), (8, 0.75, 4, 4), (2, 0.5, 1, 1)],
)
def test_a_mixed_cache_is_balanced(k: int, fraction: float, available: int, real: int):
    made = cachefl("mixed", cache__images_per_class=k, cache__real_fraction=fraction)
    generated, public = synthetic_set(per_class=k), synthetic_set(per_class=available)
    task = tiny_task(made, synthetic=generated, public=replace(public, inputs=-public.inputs))
    state = CacheFL(task, None).setup(task, rng())  # type: ignore[arg-type]
    labels = state["values"].argmax(1)
    assert torch.equal(labels, torch.arange(4).repeat_interleave(k))
    for label in range(4):
        keys = state["keys"][labels == label]
        assert torch.equal(keys[:real], -public.inputs[public.labels == label][:real])
        assert torch.equal(keys[real:], generated.inputs[generated.labels == label][: k - real])


def test_a_mixed_cache_has_room_for_both():
    with pytest.raises(ConfigError, match="set cache.images_per_class to 2 or more"):
        cachefl("mixed", cache__images_per_class=1)


def test_random_keys_follow_the_generator():
    task = tiny_task(cachefl("random"))
    method = CacheFL(task, None)  # type: ignore[arg-type]
    one, two, other = (method.setup(task, rng(s))["keys"] for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("init", "synthetic", "public"),
    [
        ("generated", True, False),
        ("text", False, False),
        ("random", False, False),
        ("public_shots", False, True),
        ("mixed", True, True),
    ],
)
def test_a_cache_asks_for_what_it_starts_from(init: str, synthetic: bool, public: bool):
    made = cachefl(init)
    assert (
        CacheFL.needs_synthetic(made.for_method()),
        CacheFL.needs_public(made.for_method()),
    ) == (synthetic, public)


def test_only_keys_travel_every_round():
    task = tiny_task(cachefl("text"))
    method = CacheFL(task, None)  # type: ignore[arg-type]
    state = method.setup(task, rng())
    assert set(method.message(state)) == {"keys"}
    assert set(method.constants(state)) == {"values", "text"}


# --- server steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cachefl", "fedavg_head", "fedavg_finetune"])
def test_the_server_adds_the_mean_to_what_is_trained(name: str):
    settings: dict[str, Any] = {"cache__init": "random"} if name == "cachefl" else {}
    made = config("m", use=name, **settings)
    tower = SimpleNamespace(visual=torch.nn.Linear(8, 8))
    task = tiny_task(made, load_clip=lambda: tower)
    method = build_method(made.for_method(), task)
    state = method.setup(task, rng())
    message = method.message(state)
    mean = {key: torch.full_like(value, 0.25) for key, value in message.items()}
    after = method.aggregate(state, Received(mean))
    for key, value in method.message(after).items():
        torch.testing.assert_close(value, message[key] + 0.25)
    assert all(torch.equal(method.message(state)[key], message[key]) for key in message)
    before, now = method.constants(state), method.constants(after)
    assert all(torch.equal(before[key], now[key]) for key in before)
    nothing = method.aggregate(state, Received({}))  # every client failed
    assert all(torch.equal(method.message(nothing)[key], message[key]) for key in message)


def test_zero_shot_is_the_softmax_of_cosines():
    task = tiny_task(config("zero_shot"))
    method = build_method(task.config, task)
    assert not method.trains
    assert not method.uses_clients
    predict, f = method.predictor(method.setup(task, rng())), unit(9, 8, seed=4)
    assert task.text_features is not None
    cosine = F.cosine_similarity(f[:, None], task.text_features[None], dim=-1)
    torch.testing.assert_close(predict(f).softmax(1), (20.0 * cosine).softmax(1))


@pytest.mark.parametrize("model", ["head", "cache"])
def test_synthetic_only_learns_on_the_server(model: str):
    settings: dict[str, Any] = {"train__local_epochs": 10, "train__lr": 5e-3}
    made = config("synthetic_only", options={"model": model}, **settings)
    synthetic = synthetic_set()
    task = tiny_task(made, synthetic=synthetic)
    method = build_method(made.for_method(), task)
    assert isinstance(method, SyntheticOnly)
    assert method.needs_synthetic(made.for_method())
    assert not method.uses_clients
    assert method.trains
    state = method.setup(task, rng())
    assert method.aggregate(state, Received({})) is state

    def loss(of: dict[str, Any]) -> float:
        return F.cross_entropy(method.predictor(of)(synthetic.inputs), synthetic.labels).item()

    def finished(seed: int) -> dict[str, Any]:
        return method.finish_round(state, Received({}), LocalExecutor(), rng(seed))

    after = finished(1)
    trained = "keys" if model == "cache" else "head"
    assert {k for k in state if not torch.equal(state[k], after[k])} == {trained}
    assert loss(after) < loss(state)
    assert torch.equal(finished(1)[trained], after[trained])
    assert not torch.equal(finished(2)[trained], after[trained])  # another order of the samples
    with pytest.raises(NotImplementedError):
        method.message(state)


NEEDED = {"fedprox_head": {"train__proximal_mu": 0.1}}
NO_CLASS_EMBEDDINGS = ("promptfl",)  # it makes its own
OF_CLIP = [name for name in METHODS if method_class(name).inputs != "images"]


@pytest.mark.parametrize("name", [name for name in OF_CLIP if name not in NO_CLASS_EMBEDDINGS])
def test_text_is_asked_for_in_words(name: str):
    made = config("m", use=name, **NEEDED.get(name, {}))
    given = {"synthetic": synthetic_set(), "text_features": None}
    tower = SimpleNamespace(visual=torch.nn.Linear(8, 8))
    task = tiny_task(made, load_clip=lambda: tower, **given)
    with pytest.raises(ConfigError, match=r"'m' needs text features.*set models\.clip"):
        build_method(made.for_method(), task).setup(task, rng())


def test_finetuning_needs_an_encoder():
    made = config("fedavg_finetune")
    task = tiny_task(made)
    with pytest.raises(ConfigError, match="precomputed features"):
        build_method(made.for_method(), task).setup(task, rng())


def test_one_round_of_fedavg_is_done_by_hand():
    """Full-batch SGD, one step: the new head is W minus lr times the gradient over all samples."""
    made = config(
        "fedavg_head", train__batch_size=64, train__lr=0.1, train__momentum=0.0,
        train__local_epochs=1,
    )  # fmt: skip
    task = tiny_task(made)
    method = build_method(made.for_method(), task)
    state = method.setup(task, rng())
    inputs, labels, rows = local_data((3, 12, 5))
    batches = batches_of(made.train, rows, inputs, labels)
    update, _ = method.client_update(method.message(state), batches, [{}] * 3, rngs(batches))
    share = (update.weight / update.weight.sum())[:, None, None]
    mean = {"head": (update.delta["head"].double() * share).sum(0).float()}
    after = method.aggregate(state, Received(mean))["head"]

    weights = state["head"].double().clone().requires_grad_()
    F.cross_entropy(20.0 * inputs.double() @ weights.T, labels).backward()
    expected = weights.detach() - 0.1 * weights.grad
    torch.testing.assert_close(after.double(), expected, rtol=1e-5, atol=1e-6)


# --- the registry --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_every_name_is_a_method(name: str):
    cls = method_class(name)
    assert issubclass(cls, Method)
    assert cls.__doc__
    assert cls.inputs in ("features", "pixels", "images")
    assert cls.reduction in ("sum", "keep")


def test_only_a_generated_cache_is_called_cachefl():
    text = experiment("x.npz", "cachefl", cache__init="text")
    with pytest.raises(ConfigError, match=r"methods.cachefl: cache.init is 'text'.*use: cachefl"):
        check_options(text, method_class("cachefl"))
    check_options(experiment("x.npz", "cachefl"), method_class("cachefl"))
    check_options(experiment("x.npz", "cache_text"), method_class("cachefl"))


def test_unknown_options_are_refused_with_a_hint():
    task = tiny_task(config("synthetic_only", options={"modell": "head"}))
    with pytest.raises(ConfigError, match="unknown setting 'modell'; did you mean 'model'"):
        build_method(task.config, task)
    task = tiny_task(config("synthetic_only", options={"model": "tree"}))
    with pytest.raises(ConfigError, match=r"options: unknown model 'tree'; known: cache, head"):
        build_method(task.config, task)
    task = tiny_task(config("fedavg_head", options={"model": "head"}))
    with pytest.raises(ConfigError, match=r"fedavg_head\.options: fedavg_head has no options"):
        build_method(task.config, task)


def test_a_task_knows_its_classes():
    task: Task = tiny_task(config("zero_shot"), num_classes=3)
    assert task.num_classes == 3
    assert len(Labelled(torch.zeros(5, 2), torch.zeros(5))) == 5


@pytest.mark.parametrize("trainable", ["keys", "keys_values", "keys_scales"])
def test_the_trainable_parts_of_a_cache(trainable: str):
    """What is trained moves and travels every round; the rest stays, and is sent once."""
    task = tiny_task(config("cache_text", cache__trainable=trainable, train__lr=0.5))
    method = CacheFL(task, CacheFL.Options())
    state = method.setup(task, torch.Generator().manual_seed(0))
    message, constants = method.message(state), method.constants(state)
    inputs, labels, rows = local_data([5, 9])
    batches = batches_of(task.config.train, rows, inputs, labels)
    sent = constants | message
    update, _ = method.client_update(sent, batches, [{}, {}], rngs(batches))
    expected = {
        "keys": {"keys"},
        "keys_values": {"keys", "values"},
        "keys_scales": {"keys", "scales"},
    }
    assert set(update.delta) == set(message) == expected[trainable]
    assert all((change != 0).any() for change in update.delta.values())
    logits = method.client_logits(sent, stack(message, 2), inputs[:6].view(2, 3, 8))
    torch.testing.assert_close(logits.flatten(0, 1), method.predictor(state)(inputs[:6]))
    reference = train_one_by_one(message, partial(method.client_logits, sent), batches)
    for name, value in update.delta.items():
        torch.testing.assert_close(value, reference[name], rtol=1e-4, atol=1e-5)
    assert set(method.class_rows(sent)) == expected[trainable] - {"scales"}
