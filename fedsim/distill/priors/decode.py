"""From latents to images, and gradients by images back to latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.distill.priors.base import Prior
from fedsim.models.networks import Shape
from fedsim.params import Params, leaves

WayBack = Callable[[Tensor], Params]
"""Gradient by images -> gradient by their latents; call it once."""


def fit(x: Tensor, shape: Shape) -> Tensor:
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
    """Images of all latents, and the way back from a gradient by them to the latents.

    Only one chunk's graph is alive at a time. A single chunk keeps its graph. Several chunks are
    decoded anew, one by one, on the way back.
    """
    chunks = _chunks(prior, latents)
    if len(chunks) > 1:
        return decode_all(prior, latents), lambda gradient: _anew(prior, chunks, gradient)
    moved = leaves(latents)
    images = prior.decode(moved)
    return images.detach(), lambda gradient: _pulled(prior, images, moved, gradient)


def _anew(prior: Prior, chunks: Sequence[Params], gradient: Tensor) -> Params:
    found = []
    for chunk, wanted in zip(chunks, gradient.split(prior.at_once), strict=True):
        moved = leaves(chunk)
        found.append(_pulled(prior, prior.decode(moved), moved, wanted))
    return {k: torch.cat([part[k] for part in found]) for k in chunks[0]}


def _pulled(prior: Prior, images: Tensor, latents: Params, gradient: Tensor) -> Params:
    """The gradient by the latents, from the gradient by the images; 0 for unused latents."""
    torch.autograd.backward(images, gradient, inputs=[*latents.values(), *prior.weights])
    return {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in latents.items()}


def _chunks(prior: Prior, latents: Params) -> list[Params]:
    count = len(next(iter(latents.values())))
    return [
        {k: v[start : start + prior.at_once] for k, v in latents.items()}
        for start in range(0, count, prior.at_once)
    ]
