"""Class prompts with a learnable context, read by CLIP's frozen text encoder.

The context of CoOp (Zhou et al., IJCV 2022, section 3.2, "end" position):

    [start] v_1 ... v_m name of the class . [end]

The tower runs its own forward pass over these tokens. Only the embeddings of the m placeholders are
replaced. The tower's masks, pooling and projection therefore apply to prompts as well, and
gradients reach the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedsim.errors import ConfigError, ModelError
from fedsim.models.clip import Clip


class PromptEncoder:
    """Contexts -> class embeddings.

    Attributes:
        num_context: m, vectors of a context.
        width: Length of a context vector, that of a token's embedding.

    Args:
        clip: The model whose text encoder reads the prompts.
        classnames: One name per class; an underscore reads as a space.
        num_context: m, > 0.

    Raises:
        ModelError: The text encoder does not work on token embeddings that can be replaced.
        ConfigError: A class name does not fit beside a context of this length.
    """

    def __init__(self, clip: Clip, classnames: Sequence[str], num_context: int) -> None:
        self.num_context = num_context
        self._tower = _text_tower(clip)
        self._embedding = _token_embedding(clip)
        self.width = self._embedding.embedding_dim
        self._tokens = _prompt_tokens(clip, classnames, num_context).to(clip.device)
        self._shortened = self._cut()

    def __call__(self, context: Tensor) -> Tensor:
        """Differentiable class embeddings of length 1.

        Args:
            context: `(..., num_classes, m, width)`, or `(..., 1, m, width)` for one context that
                all classes share.

        Returns:
            `(..., num_classes, d)`.
        """
        num_classes = len(self._tokens)
        *leading, _, m, width = context.shape
        flat = context.expand(*leading, num_classes, m, width).reshape(-1, m, width)
        tokens = self._tokens.repeat(len(flat) // num_classes, 1)

        def insert(module: nn.Module, args: tuple[Tensor], embedded: Tensor) -> Tensor:
            return torch.cat([embedded[:, :1], flat, embedded[:, 1 + m :]], dim=1)

        handle = self._embedding.register_forward_hook(insert)
        try:
            found = functional_call(self._tower, self._shortened, kwargs={"text": tokens})
        finally:
            handle.remove()
        if isinstance(found, tuple):  # (image, text, ...) of a whole model, (text, ...) of a tower
            found = next(part for part in found if part is not None)
        return functional.normalize(found, dim=-1).view(*leading, num_classes, -1)

    def _cut(self) -> dict[str, Tensor]:
        """Cut the padding after the longest prompt.

        CLIP's text encoder is causal, and its output is the output of the [end] token. No prompt
        reads the padding, so 20 tokens need not cost as much as 77. Returns the tower's tensors
        that get shorter with the tokens.
        """
        tower: Any = self._tower
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
        mask, sees_all = tower.attn_mask, getattr(tower, "cls_emb", None) is not None
        if pool not in ("argmax", "eos") or mask is None or sees_all:
            return {}
        length = int((self._tokens != 0).sum(1).max())
        self._tokens = self._tokens[:, :length]
        positions = tower.positional_embedding
        return {"attn_mask": mask[:length, :length], "positional_embedding": positions[:length]}


def embed_words(clip: Clip, text: str) -> Tensor:
    """Token embeddings `(num_tokens, width)` of a text, without [start] and [end].

    Raises:
        ModelError: The text encoder does not work on token embeddings that can be replaced.
    """
    embedding = _token_embedding(clip)
    tokens = torch.tensor(clip.tokenizer.encode(text), device=clip.device)  # type: ignore[attr-defined]
    return embedding(tokens).detach()


def _text_tower(clip: Clip) -> nn.Module:
    """The text encoder as a module; open_clip's `CLIP` is its own, other models have one."""
    return getattr(clip.model, "text", clip.model)


def _token_embedding(clip: Clip) -> nn.Embedding:
    tower = _text_tower(clip)
    embedding = getattr(tower, "token_embedding", None)
    if not isinstance(embedding, nn.Embedding) or not hasattr(clip.tokenizer, "sot_token_id"):
        raise ModelError(
            f"CLIP {clip.spec!r} has a text encoder ({type(tower).__name__}, tokeniser "
            f"{type(clip.tokenizer).__name__}) into whose prompts no context can be inserted: "
            f"choose a model with open_clip's own text transformer and tokeniser, such as "
            f"ViT-B-32/openai"
        )
    return embedding


def _prompt_tokens(clip: Clip, classnames: Sequence[str], num_context: int) -> Tensor:
    """Token ids `(num_classes, context_length)`, placeholders where the context goes."""
    tokenizer: Any = clip.tokenizer
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    tokens = torch.zeros(len(classnames), clip.model.context_length, dtype=torch.int64)
    for row, name in zip(tokens, classnames, strict=True):
        words = tokenizer.encode(f"{name.replace('_', ' ')}.")
        room = len(row) - len(words) - 2
        if num_context > room:
            raise ConfigError(
                f"a context of {num_context} vectors and class {name!r} ({len(words)} tokens) do "
                f"not fit into the {len(row)} tokens that CLIP {clip.spec!r} reads: use at most "
                f"{max(room, 0)}"
            )
        prompt = [start] * (1 + num_context) + words + [end]
        row[: len(prompt)] = torch.tensor(prompt)
    return tokens
