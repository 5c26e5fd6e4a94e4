"""PromptFL (Guo et al., arXiv 2208.11625): clients learn the context of CLIP's class prompts.

    context  V   (m, w), or (N, m, w) with `class_specific`; w: width of a token's embedding
    text_c       = norm(text encoder([start] V [class name c] . [end]))        frozen encoder
    logits       = scale * f text^T
    round:       every client trains V on its own features;  V <- sum_k (n_k / n) V_k

The prompts are CoOp's (Zhou et al., 2022). Both encoders are frozen, and a client needs both: the
image encoder for its features, the text encoder for the gradient of the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Predictor, State, Task
from fedsim.methods.shared.averaged import AveragedModel
from fedsim.methods.shared.require import require_clip
from fedsim.models.cache import text_logits
from fedsim.models.clip import Clip
from fedsim.models.prompts import PromptEncoder, embed_words
from fedsim.params import Params

_NUM_CONTEXT, _STD = 16, 0.02  # as in CoOp


class PromptFLOptions(BaseModel, extra="forbid"):
    """Size and start of the context."""

    n_ctx: int | None = Field(None, gt=0)
    """m: vectors before the class name; by default 16, or as many as `init` has tokens."""
    class_specific: bool = False
    """One context per class instead of one for all classes."""
    init: str | None = Field(None, min_length=1)
    """Words that the context starts as, such as `a photo of a`; drawn at random by default."""


class PromptFL(AveragedModel):
    """Federated averaging of a prompt's context."""

    frozen = ("visual", "text")
    Options = PromptFLOptions
    options: PromptFLOptions

    def check_task(self) -> None:
        assert self._prompts.num_context

    def setup(self, task: Task, rng: torch.Generator) -> State:
        each = (task.num_classes,) if self.options.class_specific else ()
        shape = (*each, self._prompts.num_context, self._prompts.width)
        if self.options.init is None:
            context = _STD * torch.randn(shape, generator=rng)
        else:
            context = embed_words(self._clip, self.options.init).expand(shape).clone()
        return {"context": context.to(task.device)}

    def local_flops(self, message: Params, batches: Batches, one_sample: int) -> Tensor:
        # A step encodes all prompts, whatever the size of its batch. The rest costs little.
        return one_sample * (batches.num_samples / batches.train.batch_size).ceil()

    def logits(self, model: Params, x: Tensor) -> Tensor:
        return text_logits(x, self._text(model["context"]), self.task.logit_scale)

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        with torch.no_grad():  # once for all inputs
            text = self._text(state["context"])
        return lambda x: text_logits(x, text, self.task.logit_scale)

    def _text(self, context: Tensor) -> Tensor:
        """Contexts, with or without a client axis -> class embeddings `(..., N, d)`."""
        return self._prompts(context if self.options.class_specific else context.unsqueeze(-3))

    @cached_property
    def _prompts(self) -> PromptEncoder:
        try:
            return PromptEncoder(self._clip, self.task.classnames, self._num_context)
        except ConfigError as error:
            raise ConfigError(f"methods.{self.config.method}.options.n_ctx: {error}") from error

    @property
    def _num_context(self) -> int:
        given, init = self.options.n_ctx, self.options.init
        if init is None:
            return given or _NUM_CONTEXT
        found = len(embed_words(self._clip, init))
        if given not in (None, found):
            raise ConfigError(
                f"methods.{self.config.method}.options: n_ctx is {given}, but init {init!r} has "
                f"{found} tokens: leave one of them out"
            )
        return found

    @property
    def _clip(self) -> Clip:
        return require_clip(self.task, "learns prompts for CLIP's text encoder")
