"""Federated LoRA: starts, exact and inexact averages, the client axis, and BatchNorm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.errors import ConfigError
from fedsim.methods import build_method
from fedsim.methods.base import Batches, Method, Received, State
from fedsim.methods.fedavg_finetune import TEXT
from fedsim.methods.training import train_one_by_one
from fedsim.models.clip import Clip, load_clip
from fedsim.params import Params
from tests.helpers import batches_of, experiment, rngs, tiny_task, unit
from tests.models.towers import resnet

VARIANTS = pytest.mark.parametrize("variant", ["fedit", "ffa"])


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


def build(clip: Clip, name: str = "lora", options: Any = None, **settings: Any) -> Method:
    made = experiment("images.npz", name, options=options or {}, **settings)
    text = unit(4, clip.embed_dim, seed=1)
    task = tiny_task(made, dim=clip.embed_dim, text_features=text, load_clip=lambda: clip)
    return build_method(made.for_method(), task)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(clip: Clip, number: int, seed: int = 0) -> Tensor:
    shape = (number, 3, clip.image_size, clip.image_size)
    pixels = torch.randint(0, 256, shape, generator=rng(seed), dtype=torch.uint8)
    return clip.normalise(pixels)


def local(clip: Clip, method: Method, sizes: tuple[int, ...]) -> Batches:
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    labels = torch.randint(4, (sum(sizes),), generator=rng(9))
    return batches_of(method.config.train, rows, images(clip, sum(sizes)), labels)


def update(method: Method, state: State, batches: Batches) -> Params:
    message = method.constants(state) | method.message(state)
    states: list[State] = [{} for _ in batches.client_ids]
    found, _ = method.client_update(message, batches, states, rngs(batches))
    assert torch.equal(found.weight, batches.num_samples)
    return found.delta


def of(part: str, params: Params) -> Params:
    return {name: value for name, value in params.items() if f".lora_{part}." in name}


@VARIANTS
def test_it_starts_as_zero_shot(clip: Clip, variant: str):
    method = build(clip, options={"variant": variant})
    state, x = method.setup(method.task, rng()), images(clip, 5)
    with torch.no_grad():
        expected = 20.0 * F.normalize(clip.visual(x), dim=1) @ state[TEXT].T
        torch.testing.assert_close(method.predictor(state)(x), expected, rtol=1e-4, atol=1e-4)
    assert not any(value.any() for value in of("B", state).values())
    for value in of("A", state).values():
        assert value.abs().max().item() == pytest.approx(value[0].numel() ** -0.5, rel=0.1)
    again, other = (method.setup(method.task, rng(s)) for s in (0, 1))
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    assert not any(torch.equal(value, other[n]) for n, value in of("A", again).items())


@VARIANTS
def test_what_is_sent(clip: Clip, variant: str):
    method = build(clip, options={"variant": variant, "rank": 2, "target_modules": ["q_proj"]})
    state = method.setup(method.task, rng())
    message, constants = method.message(state), method.constants(state)
    assert len(of("B", message)) == 3
    assert {tuple(v.shape) for v in of("B", message).values()} == {(64, 2)}
    sent, kept = (message, constants) if variant == "fedit" else (constants, message)
    assert len(of("A", sent)) == 3
    assert of("A", kept) == {}
    assert torch.equal(constants[TEXT], state[TEXT])
    assert method.frozen == ("visual",)
    delta = update(method, state, local(clip, method, (5, 3)))
    assert set(delta) == set(message)


@VARIANTS
@pytest.mark.parametrize("kind", ["transformer", "resnet"])
def test_batched_training_is_the_plain_loop(clip: Clip, tmp_path: Path, variant: str, kind: str):
    each = clip if kind == "transformer" else resnet(tmp_path)
    method = build(each, options={"variant": variant}, train__lr=2e-3)
    state = method.setup(method.task, rng())
    message = method.constants(state) | method.message(state)
    batches = local(each, method, (7, 1, 4))
    before = {name: v.clone() for name, v in each.visual.state_dict().items()}

    def logits(params: Params, x: Tensor) -> Tensor:
        found = method.client_logits(message, params, x)
        assert found is not None
        return found

    reference = train_one_by_one(method.message(state), logits, batches)
    # A client's own instance, which has not built its tower yet when it is asked to train.
    delta = update(build_method(method.config, method.task), state, batches)
    for name, value in delta.items():
        off = (value - reference[name]).norm() / reference[name].norm()
        assert off < 1e-3, (name, off)
    assert max(value.abs().amax() for value in of("B", delta).values()) > 1e-4
    after = each.visual.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_gradients_are_those_of_finite_differences(tmp_path: Path):
    clip = load_clip("tiny-clip")
    clip.visual.double()
    method = build(clip, options={"rank": 2, "target_modules": ["v_proj", "c_fc"]})
    x = images(clip, 4).double()
    message = method.message(method.setup(method.task, rng()))
    message = {name: 0.1 * torch.randn(v.shape, generator=rng(3)) for name, v in message.items()}
    params = {name: v.double()[None].requires_grad_() for name, v in message.items()}
    text, y = unit(4, 64, seed=1).double(), torch.tensor([0, 1, 2, 3])

    def loss(params: Params) -> Tensor:
        logits = method.client_logits({TEXT: text}, params, x[None])
        assert logits is not None
        return F.cross_entropy(logits[0], y)

    gradients = torch.autograd.grad(loss(params), list(params.values()))
    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        moved = torch.zeros_like(value)
        at = int(gradient.abs().argmax())
        moved.view(-1)[at] = 1e-6
        with torch.no_grad():
            up, down = (loss(params | {name: value + s * moved}).item() for s in (1, -1))
        slope = (up - down) / 2e-6
        assert gradient.flatten()[at].item() == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_only_ffas_average_is_that_of_the_models(clip: Clip):
    """The mean of the clients' products against the product that the server has."""
    gap = {}
    for variant in ("ffa", "fedit"):
        method = build(clip, options={"variant": variant}, train__lr=0.1, train__local_epochs=4)
        state = method.setup(method.task, rng())
        batches = local(clip, method, (9, 4, 6))
        delta = update(method, state, batches)
        share = (batches.num_samples / batches.num_samples.sum()).float()
        mean = {name: torch.tensordot(share, value, 1) for name, value in delta.items()}
        after = method.aggregate(state, Received(mean))
        worst = torch.zeros(())
        for name in of("B", after):
            layer, a = name.split(".lora_")[0], name.replace(".lora_B.", ".lora_A.")
            products = [
                (state[name] + delta[name][c]) @ (state[a] + (delta[a][c] if a in delta else 0))
                for c in range(3)
            ]
            wanted = torch.tensordot(share, torch.stack(products), 1)
            assert wanted.any(), layer
            off = (after[name] @ after[a] - wanted).norm() / wanted.norm()
            worst = torch.maximum(worst, off)
        gap[variant] = float(worst)
    assert gap["ffa"] < 1e-5
    assert gap["fedit"] > 1e-3


def test_ghosts_do_not_move(clip: Clip):
    method = build(clip)
    state = method.setup(method.task, rng())
    rows = (np.arange(6),)
    batches = batches_of(method.config.train, rows, images(clip, 6), torch.arange(6) % 4)
    assert batches.client_ids == (0, -1)
    delta = update(method, state, batches)
    assert all(not value[1].any() for value in delta.values())
    assert all(value[0].any() for value in delta.values())


def test_running_statistics_stay_clips_own(tmp_path: Path):
    """BatchNorm under fedavg_finetune: weights are trained, statistics downloaded and kept."""
    clip = resnet(tmp_path)
    method = build(clip, "fedavg_finetune", train__lr=1e-3)
    buffers = {name: value.clone() for name, value in clip.visual.named_buffers()}
    assert any(name.endswith("running_var") for name in buffers)
    state = method.setup(method.task, rng())
    constants = method.constants(state)
    assert {name for name in constants if name != TEXT} == set(buffers)
    delta = update(method, state, local(clip, method, (7, 4)))
    assert set(delta) == {name for name, _ in clip.visual.named_parameters()}
    assert delta["bn1.weight"].any()
    mean = {name: value.mean(0) for name, value in delta.items()}
    after, x = method.aggregate(state, Received(mean)), images(clip, 5)
    logits = method.predictor(after)(x)
    now = dict(clip.visual.named_buffers())
    assert all(torch.equal(value, now[name]) for name, value in buffers.items())
    # The same tower by itself, in the mode in which statistics are used and not made.
    reference = {**method.message(after), **buffers}
    with torch.no_grad():
        features = F.normalize(functional_call(clip.visual.eval(), reference, (x,)), dim=1)
        torch.testing.assert_close(logits, 20.0 * features @ state[TEXT].T)
        # With the statistics of the batch they would be others.
        batch = nn.Module.train(clip.visual)
        moved = F.normalize(functional_call(batch, reference, (x,)), dim=1)
        clip.visual.eval()
    assert not torch.allclose(features, moved, atol=1e-2)


def test_targets_and_data_are_checked(clip: Clip):
    with pytest.raises(ConfigError, match=r"lora\.options\.target_modules: .*did you mean 'c_fc'"):
        build(clip, options={"target_modules": ["cfc"]}).check_task()
    build(clip, options={"target_modules": ["c_fc"]}).check_task()
    with pytest.raises(ConfigError, match="unknown variant 'fair'; known: fedit, ffa"):
        build(clip, options={"variant": "fair"})
    made = experiment("features.npz", "lora")
    with pytest.raises(ConfigError, match=r"'lora' adapts the image encoder.*precomputed"):
        build_method(made.for_method(), tiny_task(made)).check_task()


@pytest.mark.parametrize(("name", "inside"), [("lora", "adapters"), ("fedavg_finetune", "weights")])
def test_states_of_earlier_versions_are_read(clip: Clip, name: str, inside: str):
    method = build(clip, name)
    state = method.setup(method.task, rng())
    trained = {k: v for k, v in state.items() if k != TEXT}
    older = method.restored({inside: trained, "text": state[TEXT]})
    assert older.keys() == state.keys()
    assert torch.equal(older[TEXT], state[TEXT])
