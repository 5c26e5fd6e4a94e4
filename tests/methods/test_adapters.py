"""FedCLIP and CLIP-Adapter against their plain torch modules."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import ConfigError
from fedsim.methods import build_method
from fedsim.methods.base import Method, Received
from fedsim.methods.shared.feature_adapter import affine, draw_linear
from fedsim.methods.training import train_one_by_one
from fedsim.params import Params
from tests.helpers import batches_of, experiment, local_data, rngs, tiny_task, unit

NAMES = ("fedclip", "clip_adapter")
BOTH = pytest.mark.parametrize("name", NAMES)


def build(name: str, options: dict[str, Any] | None = None, **settings: Any) -> Method:
    made = experiment("features.npz", name, options=options or {}, **settings)
    return build_method(made.for_method(), tiny_task(made))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_module(name: str, adapter: Params, ratio: float = 0.2) -> nn.Module:
    """The adapter as its authors wrote it: a `Sequential` on a batch of features."""
    d = 8
    layers = (
        [nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d), nn.Softmax(dim=1)]
        if name == "fedclip"
        else [nn.Linear(d, 2, bias=False), nn.ReLU(), nn.Linear(2, d, bias=False), nn.ReLU()]
    )
    module = nn.Sequential(*layers)
    for own, (_, value) in zip(module.parameters(), adapter.items(), strict=True):
        own.data.copy_(value)

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.adapter = module

        def forward(self, f: Tensor) -> Tensor:
            if name == "fedclip":
                return f * self.adapter(f)
            return ratio * self.adapter(f) + (1 - ratio) * f

    return Adapted()


@BOTH
def test_logits_are_those_of_the_plain_module(name: str):
    method = build(name)
    state = method.setup(method.task, rng())
    text, f = method.task.text_features, unit(7, 8, seed=5)
    assert text is not None
    adapted = as_module(name, method.message(state))(f)
    expected = 20.0 * F.cosine_similarity(adapted[:, None], text[None], dim=-1)
    torch.testing.assert_close(method.predictor(state)(f), expected)
    stacked = {key: value.expand(3, *value.shape) for key, value in method.message(state).items()}
    message = method.constants(state) | method.message(state)
    logits = method.client_logits(message, stacked, f.expand(3, 7, 8))
    assert logits is not None
    torch.testing.assert_close(logits[1], expected)


@BOTH
def test_one_step_is_minus_lr_times_the_modules_gradient(name: str):
    step: dict[str, Any] = {"train__momentum": 0.0, "train__local_epochs": 1}
    method = build(name, **step, train__batch_size=64, train__lr=0.1)
    state = method.setup(method.task, rng())
    inputs, labels, rows = local_data((9, 6))
    batches = batches_of(method.config.train, rows, inputs, labels)
    message = method.constants(state) | method.message(state)
    update, _ = method.client_update(message, batches, [{}, {}], rngs(batches))
    text = method.task.text_features
    assert text is not None
    for c in range(2):
        module = as_module(name, method.message(state))
        features = F.normalize(module(inputs[rows[c]]), dim=1)
        F.cross_entropy(20.0 * features @ text.T, labels[rows[c]]).backward()
        for own, key in zip(module.parameters(), method.message(state), strict=True):
            assert own.grad is not None
            torch.testing.assert_close(update.delta[key][c], -0.1 * own.grad, rtol=1e-4, atol=1e-7)
    assert torch.equal(update.weight, batches.num_samples)


@BOTH
def test_gradients_are_those_of_finite_differences(name: str):
    method = build(name)
    state = method.setup(method.task, rng())
    message = method.constants(state) | method.message(state)
    message = {key: value.double() for key, value in message.items()}
    params = {k: v[None].requires_grad_() for k, v in message.items() if k != "text"}
    f, y = unit(1, 6, 8, seed=2).double(), torch.tensor([0, 1, 2, 3, 0, 1])

    def loss(params: Params) -> Tensor:
        logits = method.client_logits(message, params, f)
        assert logits is not None
        return F.cross_entropy(logits[0], y)

    gradients = torch.autograd.grad(loss(params), list(params.values()))
    for (key, value), gradient in zip(params.items(), gradients, strict=True):
        at = int(gradient.abs().argmax())
        moved = torch.zeros_like(value)
        moved.view(-1)[at] = 1e-6
        with torch.no_grad():
            up, down = (loss(params | {key: value + s * moved}) for s in (1, -1))
        slope = (up - down).item() / 2e-6
        assert gradient.flatten()[at].item() == pytest.approx(slope, rel=1e-5), key


@BOTH
def test_batched_training_is_the_plain_loop(name: str):
    method = build(name, train__lr=0.05, train__local_epochs=3)
    message = method.setup(method.task, rng())
    message = method.constants(message) | method.message(message)
    inputs, labels, rows = local_data((9, 1, 14, 5))
    batches = batches_of(method.config.train, rows, inputs, labels)
    start = {key: value for key, value in message.items() if key != "text"}

    def logits(params: Params, x: Tensor) -> Tensor:
        found = method.client_logits(message, params, x)
        assert found is not None
        return found

    reference = train_one_by_one(start, logits, batches)
    update, _ = method.client_update(message, batches, [{}] * 4, rngs(batches))
    for key, value in update.delta.items():
        torch.testing.assert_close(value, reference[key], rtol=1e-3, atol=1e-6)
        assert value.abs().amax() > 1e-4


@BOTH
def test_a_start_follows_the_generator_and_is_close_to_zero_shot(name: str):
    method = build(name)
    one, two, other = (method.setup(method.task, rng(s)) for s in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)
    text, f = method.task.text_features, unit(9, 8, seed=4)
    assert text is not None
    logits = method.predictor(one)(f)
    assert F.cosine_similarity(logits, 20 * f @ text.T, dim=1).min() > 0.8


@BOTH
def test_the_server_adds_the_mean(name: str):
    method = build(name)
    state = method.setup(method.task, rng())
    mean = {key: torch.full_like(value, 0.25) for key, value in method.message(state).items()}
    after = method.aggregate(state, Received(mean))
    for key, value in method.message(after).items():
        torch.testing.assert_close(value, state[key] + 0.25)
    assert torch.equal(method.constants(after)["text"], state["text"])


def test_the_length_of_features_does_not_matter_to_clip_adapter():
    method = build("clip_adapter")
    predict = method.predictor(method.setup(method.task, rng()))
    f = unit(9, 8, seed=4)
    torch.testing.assert_close(predict(10 * f), predict(f))


def test_options_of_clip_adapter():
    method = build("clip_adapter", {"reduction": 8, "residual_ratio": 0.0})
    state = method.setup(method.task, rng())
    assert state["down.weight"].shape == (1, 8)
    text, f = method.task.text_features, unit(9, 8, seed=4)
    assert text is not None
    torch.testing.assert_close(method.predictor(state)(f), 20 * f @ text.T)  # zero-shot
    strong = build("clip_adapter", {"residual_ratio": 1.0})
    adapted = as_module("clip_adapter", strong.message(strong.setup(strong.task, rng())), 1.0)(f)
    expected = 20 * F.normalize(adapted, dim=1) @ text.T
    torch.testing.assert_close(strong.predictor(strong.setup(strong.task, rng()))(f), expected)
    with pytest.raises(ConfigError, match="residual_ratio"):
        build("clip_adapter", {"residual_ratio": 1.5})


def test_a_layer_starts_as_torchs_own():
    drawn = draw_linear("a", 400, 300, rng())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = nn.Linear(400, 300)
    assert drawn["a.weight"].shape == reference.weight.shape
    assert drawn["a.bias"].shape == reference.bias.shape
    for mine, own in ((drawn["a.weight"], reference.weight), (drawn["a.bias"], reference.bias)):
        assert mine.abs().max().item() == pytest.approx(1 / 20, rel=0.02)
        assert mine.std().item() == pytest.approx(own.std().item(), rel=0.1)
    assert set(draw_linear("a", 4, 3, rng(), bias=False)) == {"a.weight"}
    x = unit(5, 2, 400, seed=1)
    weight, bias = (
        drawn[f"a.{part}"].expand(5, *[-1] * n) for part, n in (("weight", 2), ("bias", 1))
    )
    found = affine(x, weight, bias)
    torch.testing.assert_close(found[3], F.linear(x[3], drawn["a.weight"], drawn["a.bias"]))


@BOTH
def test_states_of_earlier_versions_are_read(name: str):
    method = build(name)
    state = method.setup(method.task, rng())
    adapter = {k: v for k, v in state.items() if k != "text"}
    assert method.restored({"adapter": adapter, "text": state["text"]}).keys() == state.keys()
    assert method.restored(state).keys() == state.keys()
