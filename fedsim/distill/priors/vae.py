"""The prior `vae`: latents, or a feature map, of the decoder of `models.generator`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedsim.distill.priors.base import GeneratorOptions, Prior, Request


class Options(GeneratorOptions):
    """Options of `vae`."""

    init: Literal["generated", "noise"] = "generated"
    """Start from images of the generator, or from noise."""
    layer: int = Field(0, ge=0)
    """Stages of the decoder that run before the feature map that is optimised; 0 is the latent
    itself."""
    generator_lr: float = Field(0.0, ge=0)
    """Learning rate of the decoder's weights, by Adam; every client's set has a decoder of its own,
    which starts from the pretrained one in each round. 0 keeps it frozen."""


def load(options: Options, request: Request) -> Prior:
    """The decoder from one of its stages on."""
    from fedsim.distill.priors.decoder import Decoder

    noise = options.init == "noise"
    return Decoder(request, options.weights, options.layer, noise, options.generator_lr)
