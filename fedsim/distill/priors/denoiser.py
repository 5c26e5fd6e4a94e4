"""The prior `diffusion`: gradients through the last denoising steps and the decoder.

    z_k, e  ->  k deterministic (DDIM) steps of the U-Net under text condition e  ->  z_0  ->  image

The noisier steps before them are run once, when latents are drawn, without a graph. Each step is
recomputed in the backward pass, so memory holds one evaluation of the U-Net.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedsim.distill.priors.base import Prior
from fedsim.distill.priors.decoder import Decoder
from fedsim.errors import ConfigError
from fedsim.params import Params

_DEFAULT_STEPS = 4


class Denoiser(Prior):
    """The last steps of a few-step diffusion pipeline.

    Args:
        decoder: The prior `vae` of the same pipeline.
        denoising_steps: k, at most the pipeline's steps.

    Raises:
        ConfigError: More steps than the pipeline takes, or a condition that is not text alone.
    """

    def __init__(self, decoder: Decoder, denoising_steps: int) -> None:
        from diffusers import DDIMScheduler

        self._decoder, generator = decoder, decoder.generator
        self.at_once = decoder.at_once
        self._pipeline: Any = generator.pipeline
        asked = generator.steps or _DEFAULT_STEPS
        if denoising_steps > asked:
            raise ConfigError(
                f"distill.denoising_steps is {denoising_steps}, but {generator.spec!r} takes "
                f"{asked} steps (models.generator_steps)"
            )
        guidance = generator.guidance_scale
        self._guidance = 1.0 if guidance is None else guidance
        if self._pipeline.unet.config.get("addition_embed_type"):
            raise ConfigError(
                f"distill.prior: diffusion needs a U-Net conditioned on text alone, unlike that of "
                f"{generator.spec!r}: use prior vae"
            )
        self._scheduler = DDIMScheduler.from_config(
            self._pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
        )
        with warnings.catch_warnings():
            # Schedulers hand tensors to numpy.array, which numpy 2 deprecates.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            self._scheduler.set_timesteps(asked, device=decoder.device)
        times = [int(t) for t in self._scheduler.timesteps]
        self._before, self._with_graph = times[:-denoising_steps], times[-denoising_steps:]
        with torch.no_grad():
            self._empty = self._condition([""])

    @torch.no_grad()
    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        texts = [self._decoder.prompts.texts[int(label)] for label in labels]
        condition, z = self._condition(texts), self._decoder.noise(len(labels), rng)
        z = z * self._scheduler.init_noise_sigma
        for time in self._before:
            z = self._step(z, condition, time)
        return {"latent": z, "condition": condition}

    def decode(self, latents: Params) -> Tensor:
        z = latents["latent"]
        for time in self._with_graph:
            z = checkpoint(self._step, z, latents["condition"], time, use_reentrant=False)
        return self._decoder.from_latent(z)

    def _step(self, z: Tensor, condition: Tensor, time: int) -> Tensor:
        """One deterministic denoising step."""
        unet = self._pipeline.unet
        found = unet(z, time, condition).sample
        if self._guidance > 1:
            empty = self._empty.expand(len(z), -1, -1)
            plain = unet(z, time, empty).sample
            found = plain + self._guidance * (found - plain)
        return self._scheduler.step(found, time, z).prev_sample

    def _condition(self, texts: list[str]) -> Tensor:
        """Hidden states of the prompts, `(n, tokens, d)`."""
        pipeline = self._pipeline
        tokens = pipeline.tokenizer(
            texts,
            padding="max_length",
            max_length=pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return pipeline.text_encoder(tokens.input_ids.to(self._decoder.device))[0].float()
