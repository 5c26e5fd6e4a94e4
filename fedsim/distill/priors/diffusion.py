"""The prior `diffusion`: noisy latents and the text condition of the last denoising steps."""

from __future__ import annotations

from pydantic import Field

from fedsim.distill.priors.base import GeneratorOptions, Prior, Request


class Options(GeneratorOptions):
    """Options of `diffusion`."""

    denoising_steps: int = Field(1, gt=0)
    """How many of the last steps gradients pass through."""


def load(options: Options, request: Request) -> Prior:
    """The last steps of the pipeline and its decoder."""
    from fedsim.distill.priors.decoder import Decoder
    from fedsim.distill.priors.denoiser import Denoiser

    return Denoiser(Decoder(request, options.weights), options.denoising_steps)
