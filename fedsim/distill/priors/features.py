"""Priors in the space of a frozen encoder: the student sees features, not images.

    features   unit vectors, moved freely; needs no generator and works on precomputed features
    encoded    features of another prior's images; gradients pass through encoder and prior

Both are `fedsim.distill.priors.base.Prior`s whose `decode` gives unit features `(n, d)`.
"""

from __future__ import annotations

import functools
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config.distill import DistillConfig
from fedsim.distill.priors.base import LoadPrior, Prior, Prompts
from fedsim.distill.priors.decode import decode_all
from fedsim.distill.priors.load import image_priors
from fedsim.models.clip import Clip, load_clip
from fedsim.params import Params


class FreeFeatures(Prior):
    """Unit vectors that start in a random direction, or as the method sets them."""

    def __init__(self, dim: int, device: str = "cpu") -> None:
        self._dim, self._device = dim, device

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        return {"latent": torch.randn(len(labels), self._dim, generator=rng).to(self._device)}

    def decode(self, latents: Params) -> Tensor:
        return F.normalize(latents["latent"], dim=-1)


class EncodedImages(Prior):
    """Features that the frozen encoder gives to a prior's images."""

    def __init__(self, images: Prior, clip: Clip) -> None:
        self._images, self._clip, self.maps = images, clip, images.maps

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        return self._images.draw(labels, rng)

    def images(self, latents: Params) -> Tensor:
        """The encoder's input, `(n, 3, S, S)` in [-1, 1]."""
        return decode_all(self._images, latents)

    def decode(self, latents: Params) -> Tensor:
        pixels = (self._images.decode(latents).to(self._clip.device) + 1) * 127.5
        return self._clip.embed(pixels)


def feature_priors(dim: int, device: str) -> tuple[LoadPrior, LoadPrior]:
    """Loaders of free features and of their noise control, random directions."""
    load = partial(FreeFeatures, dim, device)
    return load, load


def encoded_priors(
    settings: DistillConfig, prompts: Prompts, clip: str, device: str
) -> tuple[LoadPrior, LoadPrior]:
    """Loaders of the configured prior behind an encoder, and of noise images behind it.

    Args:
        settings: The block `distill`.
        prompts: The request to the generator.
        clip: As `models.clip`.
        device: The device that both compute on.
    """
    given = (settings, prompts, clip, device)
    return partial(_load, *given, noise=False), partial(_load, *given, noise=True)


def _load(settings: DistillConfig, prompts: Prompts, spec: str, device: str, noise: bool) -> Prior:
    clip = _encoder(spec, device)
    shape = (3, clip.image_size, clip.image_size)
    return EncodedImages(image_priors(settings, prompts, shape, device)[noise](), clip)


@functools.lru_cache(maxsize=1)
def _encoder(spec: str, device: str) -> Clip:
    clip = load_clip(spec, device)
    clip.visual.requires_grad_(False)
    return clip
