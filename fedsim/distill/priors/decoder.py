"""The decoder of a diffusion pipeline, which every prior that needs a generator uses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsim.distill.priors.base import Prior, Request
from fedsim.distill.priors.decode import fit
from fedsim.errors import ConfigError
from fedsim.models.generator import load_generator
from fedsim.params import Params

_PIXELS_AT_ONCE = 1 << 18
"""Pixels that a diffusion decoder makes at once: 256 images of 32x32, or one of 512x512. Its
activations take some kilobytes per pixel."""


class Decoder(Prior):
    """The decoder of a diffusers pipeline's autoencoder, from one of its stages on.

    Args:
        request: The pipeline and its prompts.
        weights: `random` replaces the trained weights.
        layer: Stages that run before the feature map that is optimised; 0 is the latent itself.
        from_noise: Latents start from noise instead of the pipeline's samples.
        generator_lr: See `Prior`.

    Raises:
        ConfigError: There is no generator, or it has no such stage.
        ModelError: The generator cannot be loaded.
    """

    def __init__(
        self,
        request: Request,
        weights: Literal["pretrained", "random"] = "pretrained",
        layer: int = 0,
        from_noise: bool = False,
        generator_lr: float = 0.0,
    ) -> None:
        self.prompts, self._shape = request.prompts, request.shape
        self.device, self.generator_lr = torch.device(request.device), generator_lr
        if self.prompts.generator is None:
            raise ConfigError(
                f"distill.prior {request.name!r} needs models.generator; without one, use prior "
                f"pixels with distill.init: noise"
            )
        generator = load_generator(self.prompts.generator, request.device)
        self.generator = generator.at(self.prompts.steps, self.prompts.guidance)
        pipeline = self.generator.pipeline
        if weights == "random":
            pipeline = self.generator.pipeline = _without_knowledge(pipeline)
        for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
            part.float().requires_grad_(False)  # half precision is too coarse for gradients
        self._stages = _stages(pipeline.vae)
        self._layer, self._from_noise = layer, from_noise
        if layer >= len(self._stages):
            raise ConfigError(
                f"distill.layer is {layer}: the decoder of {self.generator.spec!r} has stages 0 to "
                f"{len(self._stages) - 1}"
            )
        self.maps = frozenset({"feature"} if layer else ())
        halvings = len(pipeline.vae.config.block_out_channels) - 1
        side = pipeline.unet.config.sample_size << halvings
        self.at_once = max(1, _PIXELS_AT_ONCE // side**2)

    @torch.no_grad()
    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        z = self.noise(len(labels), rng) if self._from_noise else self.sample(labels, rng)
        for stage in self._stages[: self._layer]:
            z = stage(z)
        return {"feature" if self._layer else "latent": z}

    def decode(self, latents: Params) -> Tensor:
        (x,) = latents.values()
        for stage in self._stages[self._layer :]:
            x = stage(x)
        return fit(x, self._shape)

    def thawed(self) -> Decoder:
        vae, twin = self.generator.pipeline.vae, copy.copy(self)
        own = copy.deepcopy(vae, {id(vae.encoder): vae.encoder})
        own.decoder.requires_grad_(True)
        twin._stages, twin.weights = _stages(own), tuple(own.decoder.parameters())
        return twin

    def from_latent(self, z: Tensor) -> Tensor:
        """Latents `(n, ...)` of unit scale -> images of the data's size."""
        for stage in self._stages:
            z = stage(z)
        return fit(z, self._shape)

    def sample(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Latents `(n, ...)` of unit scale that the pipeline draws for the labels' prompts."""
        seeds = torch.randint(2**62, (len(labels),), generator=rng).tolist()
        texts = [self.prompts.texts[int(label)] for label in labels]
        z = self.generator.draw_latents(texts, seeds)
        return z.to(self.device, torch.float32)

    def noise(self, count: int, rng: torch.Generator) -> Tensor:
        pipeline = self.generator.pipeline
        side = pipeline.unet.config.sample_size
        channels = pipeline.vae.config.latent_channels
        return torch.randn(count, channels, side, side, generator=rng).to(self.device)


def _stages(vae: Any) -> list[Callable[[Tensor], Tensor]]:
    """The decoder as functions one after the other; a decoder of another make is one stage."""
    config = vae.config
    scale, shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    decoder = vae.decoder
    names = ("conv_in", "mid_block", "up_blocks", "conv_norm_out", "conv_act", "conv_out")
    if not all(hasattr(decoder, name) for name in names):
        return [lambda z: vae.decode(z / scale + shift).sample]
    post = getattr(vae, "post_quant_conv", None) or nn.Identity()
    middle = [decoder.mid_block] if decoder.mid_block is not None else []
    return [
        lambda z: decoder.conv_in(post(z / scale + shift)),
        *middle,
        *decoder.up_blocks,
        lambda x: decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x))),
    ]


def _without_knowledge(pipeline: Any) -> Any:
    """The same networks with fresh weights, always the same ones; text and sampler are kept."""
    rng = torch.Generator().manual_seed(0)
    fresh = copy.copy(pipeline)
    for name in ("vae", "unet"):
        network = copy.deepcopy(getattr(pipeline, name))
        for key, parameter in network.named_parameters():
            if parameter.dim() > 1:
                bound = math.sqrt(3 / parameter[0].numel())
                value = (2 * torch.rand(parameter.shape, generator=rng) - 1) * bound
            else:
                value = torch.full(parameter.shape, float(key.endswith("weight")))
            parameter.data.copy_(value)
        setattr(fresh, name, network)
    return fresh
