"""The prior `pixels`: images are moved freely, from noise or from images of the generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedsim.distill.priors.base import PIXELS, GeneratorOptions, Prior, Request
from fedsim.models.networks import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.params import Params


class Options(GeneratorOptions):
    """Options of `pixels`."""

    init: Literal["generated", "noise"] = "generated"
    """Start from images of the generator, or from noise."""


def load(options: Options, request: Request) -> Prior:
    """Free pixels."""
    if options.init == "noise":
        return NoisePixels(request.shape, request.device)
    from fedsim.distill.priors.decoder import Decoder

    return GeneratedPixels(Decoder(request, options.weights))


class NoisePixels(Prior):
    """Free pixels from uniform noise: no prior knowledge at all."""

    maps = frozenset({PIXELS})

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        self._shape, self._device = shape, device

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        import torch

        noise = torch.rand(len(labels), *self._shape, generator=rng)
        return {PIXELS: (2 * noise - 1).to(self._device)}

    def decode(self, latents: Params) -> Tensor:
        return latents[PIXELS].clamp(-1, 1)


class GeneratedPixels(NoisePixels):
    """Free pixels from images of the generator."""

    def __init__(self, decoder: Prior) -> None:
        self._decoder = decoder

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        from fedsim.distill.priors.decode import decode_all

        return {PIXELS: decode_all(self._decoder, self._decoder.draw(labels, rng))}
