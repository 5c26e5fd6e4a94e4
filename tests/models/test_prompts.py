"""Prompts with a context in place of tokens, through the frozen text encoder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.errors import ConfigError, ModelError
from fedsim.models.clip import Clip, load_clip
from fedsim.models.prompts import PromptEncoder, embed_words
from tests.models.towers import variant

NAMES = ["zero", "letter_q", "question mark", "seven"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


def custom(tmp_path: Path, name: str, **text: Any) -> Clip:
    """tiny-clip's shape as open_clip's `CustomTextCLIP`, with another kind of text encoder."""
    shape = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return variant(tmp_path, name, custom_text=True, text_cfg=shape | text)


def random_context(*shape: int) -> Tensor:
    return 0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


KINDS: dict[str, dict[str, Any]] = {
    "custom": {},
    "eos": {"pool_type": "eos", "eos_id": 49407},
    "last": {"pool_type": "last", "no_causal_mask": True},
    "class-token": {"embed_cls": True},
    "biased": {"proj_bias": True},
}


@pytest.mark.parametrize("kind", ["shipped", *KINDS])
def test_words_as_context_are_the_prompt_of_these_words(kind: str, clip: Clip, tmp_path: Path):
    """The check of everything: positions, masks, pooling, projection, whatever the tower does."""
    if kind != "shipped":
        clip = custom(tmp_path, f"fedsim-prompts-{kind}", **KINDS[kind])
    words = embed_words(clip, "a photo of a")
    assert words.shape == (4, 32)
    found = PromptEncoder(clip, NAMES, 4)(words[None])
    expected = clip.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    other = PromptEncoder(clip, NAMES, 4)(words[None] + random_context(4, 32))
    assert (other - expected).abs().amax() > 1e-4


@pytest.mark.parametrize("kind", ["shipped", "last"])
def test_gradients_are_those_of_finite_differences(kind: str, tmp_path: Path):
    clip = (
        load_clip("tiny-clip")
        if kind == "shipped"
        else custom(tmp_path, "fedsim-prompts-last64", **KINDS["last"])
    )
    clip.model.double()
    encode = PromptEncoder(clip, NAMES[:2], 2)
    context = random_context(2, 2, 32).double().requires_grad_()
    along = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)).double()

    def value(context: Tensor) -> Tensor:
        return (encode(context) * along).sum()

    (gradient,) = torch.autograd.grad(value(context), context)
    step = 1e-6
    for c, i, j in [(0, 0, 0), (0, 1, 5), (1, 0, 31), (1, 1, 17)]:
        moved = torch.zeros_like(context)
        moved[c, i, j] = step
        with torch.no_grad():
            slope = (value(context + moved) - value(context - moved)).item() / (2 * step)
        assert gradient[c, i, j].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert gradient.abs().amin() > 0
    assert all(p.grad is None for p in clip.model.parameters())


def test_contexts_of_many_clients_at_once(clip: Clip):
    encode = PromptEncoder(clip, NAMES, 3)
    shared, specific = random_context(5, 1, 3, 32), random_context(5, 4, 3, 32)
    for stacked in (shared, specific):
        found = encode(stacked)
        assert found.shape == (5, 4, 64)
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(5, 4))
        for c in range(5):
            torch.testing.assert_close(found[c], encode(stacked[c]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encode(shared), encode(shared.expand(5, 4, 3, 32)))


def test_the_encoder_is_left_as_it_was(clip: Clip):
    before = clip.encode_texts(["a photo of a seven."])
    PromptEncoder(clip, NAMES, 4)(random_context(1, 4, 32))
    assert torch.equal(clip.encode_texts(["a photo of a seven."]), before)
    assert not clip.model.token_embedding._forward_hooks
    with pytest.raises(RuntimeError):  # also when the pass fails
        PromptEncoder(clip, NAMES, 4)(random_context(1, 4, 31))
    assert not clip.model.token_embedding._forward_hooks


def test_a_name_that_does_not_fit_is_named(clip: Clip):
    assert PromptEncoder(clip, NAMES, 11).num_context == 11  # 16 less start, end, two words, dot
    with pytest.raises(ConfigError, match="'letter_q' .3 tokens. do not fit .* 16 .* at most 11"):
        PromptEncoder(clip, NAMES, 12)
    with pytest.raises(ConfigError, match="at most 0"):
        PromptEncoder(clip, ["q w e r t z u i o p a s d f g h"], 1)


def test_other_text_encoders_are_refused(clip: Clip):
    hugging = SimpleNamespace(
        spec="mine", model=SimpleNamespace(text=torch.nn.Linear(2, 2)), tokenizer=clip.tokenizer
    )
    foreign = SimpleNamespace(spec="mine", model=clip.model, tokenizer=lambda texts: texts)
    for odd in (hugging, foreign):
        with pytest.raises(ModelError, match="'mine' has a text encoder .*such as ViT-B-32/openai"):
            PromptEncoder(odd, NAMES, 4)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="no context can be inserted"):
            embed_words(odd, "a photo")  # type: ignore[arg-type]
