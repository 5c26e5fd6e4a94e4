"""Local training over the client axis against the plain loop, and what clients may depend on."""

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.config import Experiment
from fedsim.config.sections import TrainConfig
from fedsim.methods import build_method
from fedsim.methods.base import Batches, Labelled, Method
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.fedavg_finetune import TEXT, FedAvgFinetune
from fedsim.methods.fedavg_head import FedAvgHead
from fedsim.methods.training import (
    cross_entropy,
    proximal,
    shifted,
    train_centrally,
    train_locally,
    train_one_by_one,
)
from fedsim.models.clip import Clip, load_clip
from fedsim.params import Params
from tests.helpers import batches_of, experiment, local_data, rngs, tiny_task, unit

SGD = {"train__optimizer": "sgd", "train__momentum": 0.9, "train__weight_decay": 0.01}
ADAMW = {"train__optimizer": "adamw", "train__weight_decay": 0.1, "train__momentum": 0.0}
OPTIMIZERS = pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
RAGGED = (9, 1, 14, 5)


class TinyTower(nn.Module):
    """A visual tower with a convolution, a normalisation and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.conv = nn.Conv2d(1, 3, 2)
            self.norm = nn.LayerNorm(3)
            self.out = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x).relu().mean((-1, -2)))
        return self.out(h)


def settings(optimizer: dict[str, Any], method: str = "cache_text", **more: Any) -> Experiment:
    given = {"train__local_epochs": 3, "train__batch_size": 4, "train__lr": 0.05}
    return experiment("features.npz", method, **(given | optimizer | more))


def cachefl(optimizer: dict[str, Any]) -> tuple[Method, tuple[int, ...]]:
    config = settings(optimizer)
    return CacheFL(tiny_task(config), None), (8,)  # type: ignore[arg-type]


def head(optimizer: dict[str, Any]) -> tuple[Method, tuple[int, ...]]:
    return FedAvgHead(tiny_task(settings(optimizer, "fedavg_head")), None), (8,)  # type: ignore[arg-type]


def finetune(optimizer: dict[str, Any]) -> tuple[Method, tuple[int, ...]]:
    tower = TinyTower()
    task = tiny_task(
        settings(optimizer, "fedavg_finetune"),
        load_clip=lambda: SimpleNamespace(visual=tower),
    )
    return FedAvgFinetune(task, None), (1, 4, 4)  # type: ignore[arg-type]


def fedclip(optimizer: dict[str, Any]) -> tuple[Method, tuple[int, ...]]:
    made = settings(optimizer, "fedclip")
    return build_method(made.for_method(), tiny_task(made)), (8,)


def clip_adapter(optimizer: dict[str, Any]) -> tuple[Method, tuple[int, ...]]:
    made = settings(optimizer, "clip_adapter")
    return build_method(made.for_method(), tiny_task(made)), (8,)


def promptfl(optimizer: dict[str, Any]) -> tuple[Method, tuple[int, ...]]:
    made, clip = settings(optimizer, "promptfl", options={"n_ctx": 2}), shipped_clip()
    return build_method(made.for_method(), tiny_task(made, dim=64, load_clip=lambda: clip)), (64,)


@cache
def shipped_clip() -> Clip:
    return load_clip("tiny-clip")


METHODS = pytest.mark.parametrize(
    "build", [cachefl, head, finetune, fedclip, clip_adapter, promptfl]
)


def trainable(method: Method, message: Params) -> Params:
    names = {"cache_text": ("keys",), "fedavg_head": ("head",)}.get(
        method.config.method, tuple(name for name in message if name not in (TEXT, "text"))
    )
    return {name: message[name] for name in names}


def start(method: Method) -> Params:
    state = method.setup(method.task, torch.Generator().manual_seed(0))
    return method.constants(state) | method.message(state)


def group(
    method: Method, shape: Sequence[int], sizes: Sequence[int], clients: Sequence[int] | None = None
) -> Batches:
    inputs, labels, rows = local_data(sizes, shape=shape)
    return batches_of(method.config.train, rows, inputs, labels, clients)


def update(method: Method, message: Params, batches: Batches) -> Params:
    states: list[dict[str, Any]] = [{} for _ in batches.client_ids]
    found, kept = method.client_update(message, batches, states, rngs(batches))
    assert torch.equal(found.weight, batches.num_samples)
    assert len(kept) == batches.num_clients
    return found.formed().delta


@METHODS
@OPTIMIZERS
def test_batched_training_is_the_plain_loop(build: Callable, optimizer: dict[str, Any]):
    method, shape = build(optimizer)
    message, batches = start(method), group(method, shape, RAGGED)

    def logits(params: Params, x: Tensor) -> Tensor:
        found = method.client_logits(message, params, x)
        assert found is not None
        return found

    reference = train_one_by_one(trainable(method, message), logits, batches)
    delta = update(method, message, batches)
    assert set(delta) == set(trainable(method, message))
    for name, value in delta.items():
        assert value.shape == (4, *message[name].shape)
        torch.testing.assert_close(value, reference[name], rtol=1e-4, atol=2e-6)
        assert value.abs().amax() > 1e-3, "training moves what it trains"


@OPTIMIZERS
def test_the_real_encoder_trains_as_in_the_plain_loop(optimizer: dict[str, Any]):
    clip = load_clip("tiny-clip")
    more = {"train__local_epochs": 1, "train__lr": 1e-3}
    config = settings(optimizer | more, "fedavg_finetune")
    text = unit(4, clip.embed_dim, seed=1)
    task = tiny_task(config, dim=clip.embed_dim, text_features=text, load_clip=lambda: clip)
    method = FedAvgFinetune(task, None)  # type: ignore[arg-type]
    before = {name: p.clone() for name, p in clip.visual.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    size = clip.image_size
    pixels = torch.randint(0, 256, (7, 3, size, size), generator=generator, dtype=torch.uint8)
    rows = (np.arange(5), np.arange(5, 7))
    batches = batches_of(config.train, rows, clip.normalise(pixels), torch.arange(7) % 4)
    message = start(method)

    def logits(params: Params, x: Tensor) -> Tensor:
        return method.client_logits(message, params, x)

    reference = train_one_by_one(trainable(method, message), logits, batches)
    delta = update(method, message, batches)
    assert set(delta) == set(before)
    for name, value in delta.items():
        torch.testing.assert_close(value, reference[name], rtol=2e-3, atol=2e-5)
    assert all(torch.equal(p, before[n]) for n, p in clip.visual.named_parameters())
    logits_now = method.predictor(method.setup(task, torch.Generator()))(clip.normalise(pixels))
    expected = clip.logit_scale * clip.encode_images(pixels) @ text.T
    torch.testing.assert_close(
        logits_now / task.logit_scale, expected / clip.logit_scale, rtol=1e-4, atol=1e-5
    )


@METHODS
@OPTIMIZERS
def test_finished_clients_stand_still(build: Callable, optimizer: dict[str, Any]):
    """A client of one step beside one of many: the same as with the others cut off."""
    method, shape = build(optimizer)
    message = start(method)
    inputs, labels, rows = local_data((3, 40), shape=shape)
    long = batches_of(method.config.train, rows, inputs, labels)
    # The same first steps for both, and then nobody goes on.
    steps = method.config.train.local_epochs * 1
    short = Batches(
        long.client_ids, long.num_samples, long.steps[:steps], long.scan, inputs, labels, long.train
    )
    assert len(long) > steps
    whole, cut = update(method, message, long), update(method, message, short)
    for name in whole:
        assert torch.equal(whole[name][0], cut[name][0])
        assert not torch.equal(whole[name][1], cut[name][1])


@METHODS
@OPTIMIZERS
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_a_clients_bits_do_not_depend_on_who_its_neighbours_are(
    build: Callable, optimizer: dict[str, Any], count: int
):
    method, shape = build(optimizer)
    message, sizes = start(method), (10,) * 12
    others = [c for c in range(12) if c != 5]
    for at in (0, count - 1):
        found = []
        for neighbours in (others[: count - 1], others[1 - count :]):
            neighbours.insert(at, 5)
            found.append(update(method, message, group(method, shape, sizes, neighbours)))
        for name in found[0]:
            assert torch.equal(found[0][name][at], found[1][name][at]), (name, count, at)


@pytest.mark.parametrize("build", [cachefl, head])
@OPTIMIZERS
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_nor_on_how_many_they_are_where_logits_are_one_product(
    build: Callable, optimizer: dict[str, Any], count: int
):
    """A vmapped network rounds differently for other C; caches and heads do not, ghost included."""
    method, shape = build(optimizer)
    message, sizes = start(method), (10,) * 12
    alone = group(method, shape, sizes, [5])
    assert alone.client_ids == (5, -1)
    reference = update(method, message, alone)
    others = [c for c in range(12) if c != 5]
    for at in (0, count - 1):
        ids = others[: count - 1]
        ids.insert(at, 5)
        found = update(method, message, group(method, shape, sizes, ids))
        for name, value in found.items():
            assert torch.equal(value[at], reference[name][0]), (name, count, at)


def test_a_networks_ghost_is_as_good_as_a_neighbour():
    method, shape = finetune(SGD)
    message, sizes = start(method), (10,) * 3
    alone = update(method, message, group(method, shape, sizes, [1]))
    pair = update(method, message, group(method, shape, sizes, [2, 1]))
    assert all(torch.equal(alone[name][0], pair[name][1]) for name in alone)


@METHODS
def test_ghosts_do_not_move(build: Callable):
    method, shape = build(SGD)
    batches = group(method, shape, (10, 4), [0])
    delta = update(method, start(method), batches)
    assert batches.num_samples.tolist() == [10, 0]
    assert all(not value[1].any() for value in delta.values())


def test_cross_entropy_is_the_mean_over_valid_samples():
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1, 2, 3, 0]]).repeat(3, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    expected = [
        F.cross_entropy(logits[0], y[0]).item(),
        F.cross_entropy(logits[1, [0, 2]], y[1, [0, 2]]).item(),
        0.0,
    ]
    assert cross_entropy(logits, y, mask).tolist() == pytest.approx(expected, rel=1e-6)


def test_one_step_of_plain_sgd_is_minus_lr_times_the_gradient():
    """Squared loss is out of reach; of softmax regression the gradient is known: (p - y) x."""
    train = TrainConfig(batch_size=8, lr=0.5, local_epochs=1)
    inputs, labels, rows = local_data((8, 6))
    batches = batches_of(train, rows, inputs, labels)
    weights = unit(4, 8, seed=9)
    delta = train_locally({"w": weights}, lambda p, x: x @ p["w"].mT, batches)["w"]
    for c in range(2):
        x, y = inputs[rows[c]].double(), F.one_hot(labels[rows[c]], 4).double()
        p = (x @ weights.double().T).softmax(1)
        expected = -0.5 * (p - y).T @ x / len(x)
        torch.testing.assert_close(delta[c].double(), expected, rtol=1e-5, atol=1e-7)


def test_central_training_is_one_client_with_all_the_data():
    train = TrainConfig(batch_size=64, lr=0.3, momentum=0.5, local_epochs=4)  # full batches
    inputs, labels, rows = local_data((20, 20))
    batches = batches_of(train, rows, inputs, labels, [0])
    weights = {"w": unit(4, 8, seed=9)}
    delta = train_locally(weights, lambda p, x: x @ p["w"].mT, batches)["w"][0]
    data = Labelled(inputs[:20], labels[:20])
    trained = train_centrally(
        weights, lambda p, x: x @ p["w"].T, data, train, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(trained["w"] - weights["w"], delta, rtol=1e-4, atol=1e-6)
    assert not trained["w"].requires_grad


COUNTS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]])


def test_logits_are_shifted_by_the_clients_own_labels():
    scores = unit(2, 5, 3)
    train = TrainConfig(logit_adjustment="log_prior", logit_adjustment_tau=2.0)
    counted = COUNTS.clamp_min(0.5)
    prior = counted / counted.sum(1, keepdim=True)
    torch.testing.assert_close(shifted(scores, COUNTS, train), scores + 2 * prior.log()[:, None])
    fedlc = TrainConfig(logit_adjustment="fedlc", logit_adjustment_tau=0.5)
    expected = scores - 0.5 / counted.sqrt().sqrt()[:, None]
    torch.testing.assert_close(shifted(scores, COUNTS, fedlc), expected)
    assert torch.equal(shifted(scores, COUNTS, TrainConfig()), scores)


def test_absent_classes_get_no_gradient():
    train = TrainConfig(mask_absent_classes=True)
    scores = unit(2, 5, 3).requires_grad_()
    out = shifted(scores, COUNTS, train)
    assert torch.equal(out, scores)
    out.exp().sum().backward()
    assert scores.grad is not None
    present = (COUNTS > 0)[:, None].expand_as(scores)
    assert (scores.grad[present] > 0).all()
    assert (scores.grad[~present] == 0).all()


def test_proximal_term_pulls_back():
    """One step of gradient descent on mu / 2 |w - w0|^2 alone moves by lr mu (w - w0)."""
    start, moved = {"w": torch.zeros(2)}, {"w": torch.tensor([[1.0, 2.0], [0.0, 0.0]])}
    moved["w"].requires_grad_()
    proximal(moved, start, mu=0.5).sum().backward()
    torch.testing.assert_close(moved["w"].grad, torch.tensor([[0.5, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_adjustment": "fedlc"},
        {"logit_adjustment": "log_prior", "logit_adjustment_tau": 0.5},
        {"mask_absent_classes": True},
        {"proximal_mu": 0.3},
    ],
)
def test_local_losses_are_the_same_one_by_one(settings: dict[str, Any]):
    train = TrainConfig(local_epochs=2, batch_size=3, lr=0.3, **settings)
    inputs, labels, rows = local_data([5, 9, 2])
    batches = batches_of(train, rows, inputs, labels)
    start = {"w": unit(4, 8)}

    def logits(params: Params, x: torch.Tensor) -> torch.Tensor:
        return 5 * x @ params["w"].mT

    together = train_locally(start, logits, batches)["w"]
    torch.testing.assert_close(together, train_one_by_one(start, logits, batches)["w"])
    plain = batches_of(TrainConfig(local_epochs=2, batch_size=3, lr=0.3), rows, inputs, labels)
    assert not torch.allclose(together, train_locally(start, logits, plain)["w"])


def test_learning_rates_fall_along_a_cosine():
    train = TrainConfig(lr=1.0, rounds=4, lr_schedule="cosine", local_epochs=(3, 2))
    assert [train.at(r).lr for r in (1, 2, 3, 4)] == pytest.approx(
        [1.0, 0.853553, 0.5, 0.146447], rel=1e-5
    )
    assert [train.at(r).local_epochs for r in (1, 2, 3, 4)] == [3, 2, 2, 2]


DUAL = pytest.mark.parametrize(
    "more",
    [
        {"train__momentum": 0.0},
        {"train__momentum": 0.9, "train__weight_decay": 0.01},
        {"train__momentum": 0.5, "train__proximal_mu": 0.3},
        {"train__logit_adjustment": "log_prior", "train__mask_absent_classes": True},
    ],
    ids=["plain", "decay", "proximal", "adjusted"],
)


@DUAL
@pytest.mark.parametrize("use", ["cachefl", "stat_cache", "stat_cache with links"])
def test_the_dual_form_of_keys_is_the_direct_one(use: str, more: dict[str, Any]):
    changes = {}
    for form in ("direct", "dual"):
        options = {"links": use != "stat_cache"} if "stat" in use else {}
        config = settings(
            {"train__lr": 0.03, "cache__form": form} | more,
            "cache_text",
            use=use.split()[0],
            options=options,
        )
        method = build_method(config.for_method(), tiny_task(config))
        message = start(method)
        if use != "cachefl":
            rng = torch.Generator().manual_seed(5)
            rows = len(message["text"]) if "text" in message else 4
            message = {
                "keys": unit(6, 8, seed=2),
                "values": torch.randn(6 + 8 * options["links"], rows, generator=rng),
                "weights": 3 * unit(rows, 8, seed=3),
                "bias": torch.randn(rows, generator=rng),
            }
        changes[form] = update(method, message, group(method, (8,), RAGGED))["keys"]
    assert changes["direct"].abs().amax((1, 2)).min() > 1e-3, "every client's keys move"
    torch.testing.assert_close(changes["dual"], changes["direct"], rtol=1e-4, atol=1e-5)


def test_the_dual_form_takes_views_and_ghosts():
    """Rows that repeat over epochs count once, and a group of one has a ghost beside it."""
    changes = {}
    for form in ("direct", "dual"):
        config = settings(
            SGD | {"cache__form": form, "train__augment_views": 3}, "cache_text", use="cachefl"
        )
        method = build_method(config.for_method(), tiny_task(config))
        inputs, labels, rows = local_data((5,), shape=(8,))
        views = inputs.repeat_interleave(3, 0) + 0.1 * torch.randn(
            15, 8, generator=torch.Generator().manual_seed(0)
        )
        batches = batches_of(config.train, rows, views, labels.repeat_interleave(3))
        assert batches.num_clients == 2
        changes[form] = update(method, start(method), batches)["keys"]
    assert changes["dual"][1].abs().max() == 0
    torch.testing.assert_close(changes["dual"], changes["direct"], rtol=1e-4, atol=1e-5)
