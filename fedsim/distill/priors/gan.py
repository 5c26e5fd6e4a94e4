"""A GAN of the user's as a prior: `distill.prior: FILE.py:FUNCTION`, for StyleGAN-XL and its like.

The function is called with the device's name and returns an object with

    map_labels(labels, rng)   labels (n,) and a CPU generator -> w, `(n, ...)`; w may have one copy
                              per layer, which are then optimised apart (W+)
    features(w, layer)        w -> f, the feature map at layer L (`distill.layer` > 0)
    synthesize(w, f, layer)   w, and f where `distill.layer` > 0 or else None -> images
                              `(n, 1 or 3, H, W)` in [-1, 1]

Both w and f are optimised, as FedDGM does (`--space wp --layer L`), with `distill.latent_lr` and
`distill.feature_lr`. f starts without non-finite values and within [-10, 10].
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.distill.priors.load import Prior, fit
from fedsim.errors import ConfigError, did_you_mean
from fedsim.params import Params

_LARGEST = 10.0
_REPLACEMENT = 5.0


class Gan(Protocol):
    """What the user's function returns."""

    def map_labels(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Class-conditional style latents."""

    def features(self, w: Tensor, layer: int) -> Tensor:
        """The feature map at a layer."""

    def synthesize(self, w: Tensor, f: Tensor | None, layer: int) -> Tensor:
        """Images from style latents and the feature map."""


class GanPrior(Prior):
    """Style latents and, from layer L on, a feature map."""

    def __init__(self, gan: Gan, layer: int, shape: tuple[int, int, int]) -> None:
        self._gan, self._layer, self._shape = gan, layer, shape
        self.maps = frozenset({"f"} if layer else ())

    @torch.no_grad()
    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        w = self._gan.map_labels(labels, rng)
        if not self._layer:
            return {"w": w}
        f = self._gan.features(w, self._layer)
        f = f.nan_to_num(_REPLACEMENT, _REPLACEMENT, -_REPLACEMENT).clamp(-_LARGEST, _LARGEST)
        return {"w": w, "f": f}

    def decode(self, latents: Params) -> Tensor:
        images = self._gan.synthesize(latents["w"], latents.get("f"), self._layer)
        return fit(images, self._shape)


def load_gan(spec: str, layer: int, shape: tuple[int, int, int], device: str) -> Prior:
    """The prior behind `FILE.py:FUNCTION`.

    Raises:
        ConfigError: No such file or function, or one that raises or returns something else.
    """
    file, _, name = spec.partition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        near = [other.name for other in path.parent.glob("*.py")]
        hint = f"; {did_you_mean(path.name, near)}" if near else ""
        raise ConfigError(f"distill.prior: no file {file!r}{hint}")
    if not name:
        raise ConfigError(f"distill.prior: say which function of {file}, as {file}:FUNCTION")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    found = importlib.util.spec_from_file_location(f"fedsim_prior_{path.stem}_{digest}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        functions = {k: v for k, v in vars(module).items() if callable(v)}
        if name not in functions:
            raise ConfigError(f"it has no {name!r}; {did_you_mean(name, functions)}")
        gan: Any = functions[name](device)
    except Exception as error:
        raise ConfigError(f"distill.prior: {spec}: {type(error).__name__}: {error}") from error
    wanted = ("map_labels", "features", "synthesize")
    missing = [part for part in wanted if not callable(getattr(gan, part, None))]
    if missing:
        raise ConfigError(
            f"distill.prior: {spec} returned a {type(gan).__name__} without {', '.join(missing)}"
        )
    return GanPrior(gan, layer, shape)
