"""The contract of a prior, and the request that it is loaded for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field

from fedsim.config.base import Section
from fedsim.models.networks import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.params import Params

PIXELS = "pixels"
"""Latents that are the images themselves, in [-1, 1]."""


class GeneratorOptions(Section):
    """Options of priors that take images or a decoder from `models.generator`."""

    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` is a control: the generator's architecture without what it has learned."""
    words: tuple[str, ...] | None = Field(None, strict=False)
    """Words that the generator draws, one per class, instead of the classes' names: other words
    make a mismatched prior, a control."""


@dataclass(frozen=True)
class Prompts:
    """The request to the generator; hashable, so that a prior is loaded once.

    Attributes:
        generator: As `models.generator`.
        texts: One prompt per class.
        steps: Denoising steps instead of the generator's default.
        guidance: Guidance instead of the generator's default.
    """

    generator: str | None
    texts: tuple[str, ...]
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Request:
    """The request that a prior is loaded for.

    Attributes:
        name: The prior as the study names it.
        prompts: The request to the generator.
        shape: `(c, h, w)` of the data.
        device: The device that the prior computes on.
    """

    name: str
    prompts: Prompts
    shape: Shape
    device: str


class Prior(Protocol):
    """Draws latents for labels and decodes them, differentiably, to images of the data's size.

    Latents are named tensors `(n, ...)`.
    """

    maps: frozenset[str] = frozenset()
    """Names of latents that are pixels or feature maps: their rate is `distill.feature_lr`."""
    weights: tuple[Tensor, ...] = ()
    """Weights of the generator that are fine-tuned: the way back leaves their `grad`."""
    generator_lr: float = 0.0
    """Learning rate of a thawed prior's weights; 0 keeps them frozen."""
    at_once: int = 32
    """Images that are decoded at once, forwards and backwards."""

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        """Latents for labels `(n,)`: `(n, ...)` by name, drawn with a CPU generator."""

    def decode(self, latents: Params) -> Tensor:
        """Latents -> images `(n, c, h, w)` in [-1, 1], with gradients."""

    def thawed(self) -> Prior:
        """The same prior with `weights` of its own; a prior without weights returns itself."""
        return self


LoadPrior = Callable[[], Prior]
