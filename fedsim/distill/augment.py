"""Differentiable siamese augmentation (DSA; Zhao & Bilen, ICML 2021).

One operation is drawn for a batch, its strength for every image or once for all of them. The same
draw can be applied to several batches (`siamese`: real and synthetic images see the same change),
and gradients pass through every operation. Strengths are those of the dataset-distillation
literature:

    color    brightness ± 0.5 of the range's half, saturation 0 to 2, contrast 0.5 to 1.5
    crop     shift by up to 1/8 of the side            cutout   a square of half the side
    flip     left to right, for half of the images     scale    1/1.2 to 1.2 in each direction
    rotate   by up to 15 degrees

DSA fills gaps with the data set's mean, which is 0 after its normalisation. Here images are in
[-1, 1], and a data set's mean need not be 0. Edges are filled with the nearest pixel instead, and
cutouts with the image's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config.distill import Operation

OPERATIONS: tuple[Operation, ...] = get_args(Operation)

_NUM_VALUES = 3
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5
_SHIFT, _CUTOUT, _SCALE, _DEGREES = 0.125, 0.5, 1.2, 15.0


@dataclass(frozen=True)
class AugmentDraw:
    """An operation and its strengths, uniform in [0, 1): `(n, 3)`, or `(1, 3)` for all images."""

    operation: str
    strength: Tensor


def draw_augmentation(
    operations: Sequence[str],
    num_images: int,
    rng: torch.Generator,
    siamese: bool = False,
    padded_to: int = 0,
) -> AugmentDraw | None:
    """One of the operations, with a strength per image or, `siamese`, one for all.

    Args:
        operations: Some of `OPERATIONS`; none means no augmentation.
        num_images: Images of the batch.
        rng: A CPU generator.
        siamese: Whether one strength holds for all images, also of other batches.
        padded_to: Number of images with padding; nothing is drawn for padding.
    """
    if not operations:
        return None
    chosen = int(torch.randint(len(operations), (), generator=rng))
    rows = 1 if siamese else num_images
    strength = torch.rand(rows, _NUM_VALUES, generator=rng)
    if not siamese and padded_to > rows:
        strength = torch.cat([strength, strength.new_full((padded_to - rows, _NUM_VALUES), 0.5)])
    return AugmentDraw(operations[chosen], strength)


def augment(x: Tensor, draw: AugmentDraw | None) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1], changed as drawn; differentiable in `x`."""
    if draw is None:
        return x
    strength = draw.strength.to(x).expand(len(x), _NUM_VALUES)
    return _FUNCTIONS[draw.operation](x, strength)


def _color(x: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = (v.view(-1, 1, 1, 1) for v in u.unbind(1))
    x = x + (brightness - 0.5) * _BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (saturation * _SATURATION) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + _CONTRAST) + mean


def _crop(x: Tensor, u: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    rows = _shifted(height, u[:, 0])[:, None, :, None].expand(*x.shape)
    columns = _shifted(width, u[:, 1])[:, None, None, :].expand(*x.shape)
    return x.gather(2, rows).gather(3, columns)


def _shifted(side: int, u: Tensor) -> Tensor:
    """`(n, side)` source positions, moved by a whole number of pixels; the edge repeats."""
    most = round(side * _SHIFT)
    by = (u * (2 * most + 1)).floor().long() - most
    return (torch.arange(side, device=u.device) + by[:, None]).clamp(0, side - 1)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    inside = _covered(x.shape[-2], u[:, 0])[:, None, :, None]
    inside = inside & _covered(x.shape[-1], u[:, 1])[:, None, None, :]
    return torch.where(inside, x.mean((2, 3), keepdim=True), x)


def _covered(side: int, u: Tensor) -> Tensor:
    """`(n, side)` bool: half the side, around a centre anywhere in the image."""
    half, centre = round(side * _CUTOUT) / 2, u[:, None] * side
    place = torch.arange(side, device=u.device) + 0.5
    return (place >= centre - half) & (place < centre + half)


def _flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(u[:, 0].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    by = 1 / _SCALE + u[:, :2] * (_SCALE - 1 / _SCALE)
    return _affine(x, torch.diag_embed(by))


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = (2 * u[:, 0] - 1) * math.radians(_DEGREES)
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    return _affine(x, rows.view(-1, 2, 2))


def _affine(x: Tensor, matrix: Tensor) -> Tensor:
    """Resampled around the centre: `matrix` `(n, 2, 2)` maps output to input places."""
    theta = F.pad(matrix, (0, 1))
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
