"""PromptFL: starts, logits, gradients through the text encoder, and its options."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedsim.errors import ConfigError
from fedsim.methods import build_method
from fedsim.methods.base import Method
from fedsim.methods.training import train_one_by_one
from fedsim.models.clip import Clip, load_clip
from tests.helpers import CLASSES, batches_of, experiment, local_data, rngs, tiny_task, unit


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


def promptfl(clip: Clip, options: dict[str, Any], **settings: Any) -> Method:
    made = experiment("features.npz", "promptfl", options=options, **settings)
    task = tiny_task(made, dim=clip.embed_dim, load_clip=lambda: clip)
    return build_method(made.for_method(), task)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("specific", [False, True])
def test_words_start_as_the_zero_shot_classifier(clip: Clip, specific: bool):
    method = promptfl(clip, {"init": "a photo of a", "class_specific": specific})
    state = method.setup(method.task, rng())
    assert state["context"].shape == ((4, 4, 32) if specific else (4, 32))
    text = clip.encode_texts([f"a photo of a {name}." for name in CLASSES[:4]])
    f = unit(7, 64, seed=3)
    expected = method.task.logit_scale * f @ text.T
    torch.testing.assert_close(method.predictor(state)(f), expected, rtol=1e-4, atol=1e-4)
    message = method.message(state)
    stacked = {"context": state["context"].expand(3, *state["context"].shape)}
    logits = method.client_logits(message, stacked, f.expand(3, 7, 64))
    assert logits is not None
    torch.testing.assert_close(logits[2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("specific", [False, True])
def test_a_random_start_follows_the_generator(clip: Clip, specific: bool):
    method = promptfl(clip, {"n_ctx": 8, "class_specific": specific})
    one, two, other = (method.setup(method.task, rng(s))["context"] for s in (1, 1, 2))
    assert one.shape == ((4, 8, 32) if specific else (8, 32))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(0.02, rel=0.15)
    if specific:
        assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("specific", [False, True])
def test_one_step_is_minus_lr_times_the_gradient(clip: Clip, specific: bool):
    """The gradient by another way: the prompts' sentences are read by the plain tower."""
    step = {"train__momentum": 0.0, "train__local_epochs": 1, "train__batch_size": 64}
    options = {"init": "a photo of a", "class_specific": specific}
    method = promptfl(clip, options, **step, train__lr=0.1)
    state = method.setup(method.task, rng())
    inputs, labels, rows = local_data((9, 6), shape=(64,))
    batches = batches_of(method.config.train, rows, inputs, labels)
    update, _ = method.client_update(method.message(state), batches, [{}, {}], rngs(batches))
    tokens = clip.tokenizer([f"a photo of a {name}." for name in CLASSES[:4]])
    model = clip.model
    for c in range(2):
        embedded = model.token_embedding(tokens).requires_grad_()
        x = model.transformer(embedded + model.positional_embedding, attn_mask=model.attn_mask)
        ends = model.ln_final(x)[torch.arange(4), tokens.argmax(1)]
        text = F.normalize(ends @ model.text_projection, dim=1)
        logits = method.task.logit_scale * inputs[rows[c]] @ text.T
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[rows[c]]), embedded)
        expected = -0.1 * gradient[:, 1:5]
        if not specific:
            expected = expected.sum(0)
        torch.testing.assert_close(update.delta["context"][c], expected, rtol=1e-3, atol=1e-6)


def test_batched_training_is_the_plain_loop(clip: Clip):
    method = promptfl(clip, {"n_ctx": 3}, train__lr=0.02)
    message = method.message(method.setup(method.task, rng()))
    inputs, labels, rows = local_data((9, 1, 6), shape=(64,))
    batches = batches_of(method.config.train, rows, inputs, labels)

    def logits(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        found = method.client_logits(message, params, x)
        assert found is not None
        return found

    reference = train_one_by_one(message, logits, batches)["context"]
    update, _ = method.client_update(message, batches, [{}] * 3, rngs(batches))
    torch.testing.assert_close(update.delta["context"], reference, rtol=1e-3, atol=1e-5)
    assert update.delta["context"].abs().amax() > 1e-3
    assert all(p.grad is None for p in clip.model.parameters())


def test_only_the_context_travels(clip: Clip):
    method = promptfl(clip, {"n_ctx": 8})
    state = method.setup(method.task, rng())
    assert set(method.message(state)) == {"context"}
    assert method.constants(state) == {}
    assert method.frozen == ("visual", "text")


def test_contexts_that_cannot_be_are_refused(clip: Clip):
    with pytest.raises(ConfigError, match=r"promptfl.options.n_ctx: .* of 16 .* at most 12"):
        promptfl(clip, {}).check_task()
    promptfl(clip, {"n_ctx": 12}).check_task()
    both = promptfl(clip, {"n_ctx": 5, "init": "a photo of a"})
    with pytest.raises(ConfigError, match="n_ctx is 5, but init 'a photo of a' has 4 tokens"):
        both.check_task()
    promptfl(clip, {"n_ctx": 4, "init": "a photo of a"}).check_task()


def test_prompts_need_a_text_encoder():
    made = experiment("features.npz", "promptfl")
    with pytest.raises(ConfigError, match=r"learns prompts.*precomputed features"):
        build_method(made.for_method(), tiny_task(made)).check_task()
