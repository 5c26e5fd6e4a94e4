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

from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from fedsim.config.base import Section
from fedsim.config.families import load_part
from fedsim.distill.priors.base import Prior, Request
from fedsim.errors import ConfigError
from fedsim.models.networks import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.params import Params

_LARGEST = 10.0
_REPLACEMENT = 5.0
_PARTS = ("map_labels", "features", "synthesize")


class Options(Section):
    """Options of a GAN."""

    layer: int = Field(0, ge=0)
    """Layer of the feature map that is optimised beside the style latents; 0 for none."""


def load(options: Options, request: Request) -> Prior:
    """The prior behind `FILE.py:FUNCTION`.

    Raises:
        ConfigError: No such file or function, or one that raises or returns something else.
    """
    spec = request.name
    file, _, name = spec.partition(":")
    if not name:
        raise ConfigError(f"distill.prior: say which function of {file}, as {file}:FUNCTION")
    try:
        gan = load_part(spec)(request.device)
    except ConfigError as error:
        raise ConfigError(f"distill.prior: {error}") from error
    except Exception as error:
        raise ConfigError(f"distill.prior: {spec}: {type(error).__name__}: {error}") from error
    missing = [part for part in _PARTS if not callable(getattr(gan, part, None))]
    if missing:
        raise ConfigError(
            f"distill.prior: {spec} returned a {type(gan).__name__} without {', '.join(missing)}"
        )
    return GanPrior(gan, options.layer, request.shape)


class Gan(Protocol):
    """The contract of the object that the user's function returns."""

    def map_labels(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Class-conditional style latents."""

    def features(self, w: Tensor, layer: int) -> Tensor:
        """The feature map at a layer."""

    def synthesize(self, w: Tensor, f: Tensor | None, layer: int) -> Tensor:
        """Images from style latents and the feature map."""


class GanPrior(Prior):
    """Style latents and, from layer L on, a feature map."""

    def __init__(self, gan: Gan, layer: int, shape: Shape) -> None:
        self._gan, self._layer, self._shape = gan, layer, shape
        self.maps = frozenset({"f"} if layer else ())

    def draw(self, labels: Tensor, rng: torch.Generator) -> Params:
        import torch

        with torch.no_grad():
            w = self._gan.map_labels(labels, rng)
            if not self._layer:
                return {"w": w}
            f = self._gan.features(w, self._layer)
        f = f.nan_to_num(_REPLACEMENT, _REPLACEMENT, -_REPLACEMENT).clamp(-_LARGEST, _LARGEST)
        return {"w": w, "f": f}

    def decode(self, latents: Params) -> Tensor:
        from fedsim.distill.priors.decode import fit

        images = self._gan.synthesize(latents["w"], latents.get("f"), self._layer)
        return fit(images, self._shape)
