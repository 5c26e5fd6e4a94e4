"""The steps of latents, and of a generator that is fine-tuned beside them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam

from fedsim.config.distill import DistillConfig
from fedsim.distill.priors.base import PIXELS, Prior
from fedsim.params import Params

MOMENTUM = 0.5
"""Of SGD on latents and pixels, as in the literature on dataset distillation."""


class Descent:
    """SGD with momentum, or Adam, on one set of latents; pixels and maps have a rate of their own.

    Args:
        settings: The block `distill`: optimiser and learning rates.
        maps: Names of latents that are pixels or feature maps; see `Prior.maps`.
    """

    def __init__(self, settings: DistillConfig, maps: frozenset[str]) -> None:
        self._settings, self._maps = settings, maps
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}
        self._steps = 0

    def step(self, latents: Params, gradients: Params) -> Params:
        """The latents after one step against the gradients, both by name."""
        self._steps += 1
        moved = {name: self._moved(name, z, gradients[name]) for name, z in latents.items()}
        if PIXELS in moved:  # outside of the range of images, gradients are 0
            moved[PIXELS] = moved[PIXELS].clamp(-1, 1)
        return moved

    def _moved(self, name: str, z: Tensor, g: Tensor) -> Tensor:
        settings, t = self._settings, self._steps
        lr = settings.feature_lr if name in self._maps else settings.latent_lr
        m = self._first.get(name, torch.zeros_like(g))
        if settings.optimizer == "sgd":
            self._first[name] = m = MOMENTUM * m + g
            return z - lr * m
        v = self._second.get(name, torch.zeros_like(g))
        self._first[name] = m = 0.9 * m + 0.1 * g
        self._second[name] = v = 0.999 * v + 0.001 * g.square()
        return z - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


class FineTuning:
    """Adam on a generator's weights; frozen weights stay as they are.

    Args:
        prior: The pretrained prior. It stays as it is; `self.prior` is fine-tuned.
    """

    def __init__(self, prior: Prior) -> None:
        lr = prior.generator_lr
        self.prior = prior.thawed() if lr else prior
        self._adam = Adam(self.prior.weights, lr) if lr else None

    def step(self) -> None:
        """One step against the gradients that the ways back have left since the last step."""
        if self._adam is not None:
            self._adam.step()
            self._adam.zero_grad()
