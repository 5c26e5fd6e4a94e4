"""Priors: what synthetic images are made of, and how latents become images.

    pixels      the images themselves
    vae         the decoder of the configured diffusion pipeline: latents, or the feature map that
                `distill.layer` of its stages have made of them (FedDGM's layer L)
    diffusion   the last denoising steps and the decoder: noisy latents and the text condition
    FILE.py:F   a GAN of the user's, with FedDGM's pair of latents (`fedsim.distill.priors.gan`)

A prior draws latents for labels and decodes them, differentiably, to images in [-1, 1] of the
data's size and channels. Latents are named tensors `(n, ...)`; those in `Prior.maps` are pixels or
feature maps, whose learning rate is `distill.feature_lr`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.config import MethodConfig
from fedsim.config.distill import DistillConfig
from fedsim.data.containers import DEFAULT_TEMPLATES
from fedsim.errors import ConfigError
from fedsim.params import Params

if TYPE_CHECKING:
    from fedsim.models.generator import Generator

__all__ = [
    "LoadPrior",
    "Prior",
    "Prompts",
    "decode_all",
    "decode_with_way_back",
    "fit",
    "image_priors",
    "load_prior",
    "prompts_of",
]

PIXELS = "pixels"
"""Latents that are the images themselves, in [-1, 1]."""

_PIXELS_AT_ONCE = 1 << 18
"""What a diffusion decoder makes at once: 256 images of 32x32, or one of 512x512. Its activations
take some kilobytes per pixel."""


@dataclass(frozen=True)
class Prompts:
    """What the generator is asked for, and how; hashable, so that a prior is loaded once.

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


class Prior(Protocol):
    """Draws and decodes latents."""

    maps: frozenset[str] = frozenset()
    """Names of latents that are pixels or feature maps."""
    weights: tuple[Tensor, ...] = ()
    """Of the generator, where they are to be fine-tuned: the way back leaves their `grad`."""
    at_once: int = 32
    """Images that are decoded at once, forwards and backwards."""

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        """Latents for labels `(n,)`: `(n, ...)` by name, drawn with a CPU generator."""

    def decode(self, latents: Params) -> Tensor:
        """Latents -> images `(n, c, h, w)` in [-1, 1], with gradients."""

    def thawed(self) -> Prior:
        """The same images, from `weights` of its own; a prior that has none is its own copy."""
        return self


LoadPrior = Callable[[], Prior]

WayBack = Callable[[Tensor], Params]
"""Gradient by images -> gradient by their latents; to be called once."""


def fit(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images `(n, c, h, w)` in the size and channels of the data, cut to [-1, 1]; differentiable.

    Grey is the luma of colours, and colours of grey are equal.
    """
    if x.shape[1] == 3 and shape[0] == 1:
        weight = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device)
        x = (x * weight.view(1, 3, 1, 1)).sum(1, keepdim=True)
    x = x.expand(-1, shape[0], -1, -1)
    if x.shape[2:] != shape[1:]:
        x = F.interpolate(x, shape[1:], mode="bilinear", antialias=True, align_corners=False)
    return x.clamp(-1, 1)


@torch.no_grad()
def decode_all(prior: Prior, latents: Params) -> Tensor:
    """Images of all latents, chunk by chunk, without a graph."""
    return torch.cat([prior.decode(chunk) for chunk in _chunks(prior, latents)])


def decode_with_way_back(prior: Prior, latents: Params) -> tuple[Tensor, WayBack]:
    """Images of all latents, and what pulls a gradient by them back to the latents.

    One chunk's graph is alive at a time: it is kept where there is but one, and of several each
    is decoded anew on the way back.
    """
    chunks = _chunks(prior, latents)
    if len(chunks) > 1:
        return decode_all(prior, latents), lambda gradient: _anew(prior, chunks, gradient)
    leaves = _leaves(latents)
    images = prior.decode(leaves)
    return images.detach(), lambda gradient: _pulled(prior, images, leaves, gradient)


def _anew(prior: Prior, chunks: Sequence[Params], gradient: Tensor) -> Params:
    found = []
    for chunk, wanted in zip(chunks, gradient.split(prior.at_once), strict=True):
        leaves = _leaves(chunk)
        found.append(_pulled(prior, prior.decode(leaves), leaves, wanted))
    return {k: torch.cat([part[k] for part in found]) for k in chunks[0]}


def _leaves(latents: Params) -> Params:
    return {k: v.detach().requires_grad_() for k, v in latents.items()}


def _pulled(prior: Prior, images: Tensor, leaves: Params, gradient: Tensor) -> Params:
    """From the gradient by the images to that by the latents; 0 by those that play no part."""
    torch.autograd.backward(images, gradient, inputs=[*leaves.values(), *prior.weights])
    return {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in leaves.items()}


def _chunks(prior: Prior, latents: Params) -> list[Params]:
    count = len(next(iter(latents.values())))
    return [
        {k: v[start : start + prior.at_once] for k, v in latents.items()}
        for start in range(0, count, prior.at_once)
    ]


@functools.lru_cache(maxsize=2)
def load_prior(
    settings: DistillConfig, prompts: Prompts, shape: tuple[int, int, int], device: str
) -> Prior:
    """The configured prior; the last ones used are kept.

    Args:
        settings: The block `distill`.
        prompts: What the generator is asked for.
        shape: `(c, h, w)` of the data.
        device: Where it computes.

    Raises:
        ConfigError: The settings do not go together, or the GAN's file is wrong.
        ModelError: The generator cannot be loaded.
    """
    if settings.is_gan:
        from fedsim.distill.priors.gan import load_gan

        return load_gan(settings.prior, settings.layer, shape, device)
    if settings.prior == "pixels" and settings.init == "noise":
        return NoisePixels(shape, device)
    if prompts.generator is None:
        raise ConfigError(
            f"distill.prior {settings.prior!r} needs models.generator; without one, use prior "
            f"pixels with distill.init: noise"
        )
    from fedsim.models.generator import load_generator

    generator = load_generator(prompts.generator, device)
    decoder = Decoder(generator, settings, prompts, shape, torch.device(device))
    if settings.prior == "pixels":
        return GeneratedPixels(decoder)
    if settings.prior == "vae":
        return decoder
    from fedsim.distill.priors.denoiser import Denoiser

    return Denoiser(decoder, settings.denoising_steps)


class NoisePixels(Prior):
    """Free pixels from uniform noise: no prior knowledge at all."""

    maps = frozenset({PIXELS})

    def __init__(self, shape: tuple[int, int, int], device: str = "cpu") -> None:
        self._shape, self._device = shape, device

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        noise = torch.rand(len(labels), *self._shape, generator=rng)
        return {PIXELS: (2 * noise - 1).to(self._device)}

    def decode(self, latents: Params) -> Tensor:
        return latents[PIXELS].clamp(-1, 1)


class GeneratedPixels(Prior):
    """Free pixels from images of the generator."""

    maps = frozenset({PIXELS})

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        return {PIXELS: decode_all(self._decoder, self._decoder.draw(labels, rng))}

    def decode(self, latents: Params) -> Tensor:
        return latents[PIXELS].clamp(-1, 1)


class Decoder(Prior):
    """The decoder of a diffusers pipeline's autoencoder, from one of its stages on.

    Args:
        generator: The pipeline.
        settings: The block `distill`.
        prompts: What the pipeline is asked for.
        shape: `(c, h, w)` of the data.
        device: Where it computes.

    Raises:
        ConfigError: The pipeline has no such stage, or too few prompts.
    """

    def __init__(
        self,
        generator: Generator,
        settings: DistillConfig,
        prompts: Prompts,
        shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.generator, self.prompts, self.shape, self.device = generator, prompts, shape, device
        pipeline = generator.pipeline
        if settings.weights == "random":
            pipeline = generator.pipeline = _without_knowledge(pipeline)
        for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
            part.float().requires_grad_(False)  # half precision is too coarse for gradients
        self._stages = _stages(pipeline.vae)
        self._layer, self._drawn = settings.layer, settings.init == "generated"
        if self._layer >= len(self._stages):
            raise ConfigError(
                f"distill.layer is {self._layer}: the decoder of {generator.spec!r} has stages 0 "
                f"to {len(self._stages) - 1}"
            )
        self.maps = frozenset({"feature"} if self._layer else ())
        halvings = len(pipeline.vae.config.block_out_channels) - 1
        side = pipeline.unet.config.sample_size << halvings
        self.at_once = max(1, _PIXELS_AT_ONCE // side**2)

    @torch.no_grad()
    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        z = self.sample(labels, rng) if self._drawn else self.noise(len(labels), rng)
        for stage in self._stages[: self._layer]:
            z = stage(z)
        return {"feature" if self._layer else "latent": z}

    def decode(self, latents: Params) -> Tensor:
        (x,) = latents.values()
        for stage in self._stages[self._layer :]:
            x = stage(x)
        return fit(x, self.shape)

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
        return fit(z, self.shape)

    def sample(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Latents `(n, ...)` of unit scale that the pipeline draws for the labels' prompts."""
        seeds = torch.randint(2**62, (len(labels),), generator=rng).tolist()
        prompts = self.prompts
        texts = [prompts.texts[int(label)] for label in labels]
        z = self.generator.draw_latents(
            texts, seeds, steps=prompts.steps, guidance_scale=prompts.guidance
        )
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


def prompts_of(config: MethodConfig, classnames: Sequence[str]) -> Prompts:
    """What an experiment's generator is asked for.

    Raises:
        ConfigError: `distill.words` are not one per class.
    """
    words = config.distill.words or classnames
    if len(words) != len(classnames):
        raise ConfigError(f"distill.words has {len(words)} words for {len(classnames)} classes")
    templates = config.synthetic.prompts or config.data.templates or DEFAULT_TEMPLATES
    models = config.models
    texts = class_prompts(words, templates[0])
    return Prompts(models.generator, texts, models.generator_steps, models.generator_guidance)


def image_priors(
    config: MethodConfig, classnames: Sequence[str], shape: tuple[int, int, int], device: str
) -> tuple[LoadPrior, LoadPrior]:
    """Loaders of the configured prior of images and of one without knowledge, its noise control.

    Args:
        config: What the method reads.
        classnames: What the generator draws.
        shape: `(c, h, w)` of the images.
        device: Where they are computed.

    Raises:
        ConfigError: See `prompts_of`.
    """
    prompts = prompts_of(config, classnames)
    prior = functools.partial(load_prior, config.distill, prompts, shape, device)
    return prior, functools.partial(NoisePixels, shape, device)


def class_prompts(words: Sequence[str], template: str) -> tuple[str, ...]:
    """One prompt per class.

    >>> class_prompts(["sea_lion"], "a photo of a {}")
    ('a photo of a sea lion',)
    """
    return tuple(template.replace("{}", word.replace("_", " ")) for word in words)
