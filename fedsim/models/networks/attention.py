"""The vision transformer's modules."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.models.networks import Shape

_HEAD_WIDTH = 64


class VisionTransformer(nn.Module):
    """Patches as tokens, a class token in front of them, layers that normalise first."""

    def __init__(self, shape: Shape, width: int, depth: int) -> None:
        super().__init__()
        side = max(shape[1:])
        self.patch = 2 if side < 16 else 4 if side < 64 else 8 if side < 128 else 16
        count = math.prod(math.ceil(length / self.patch) for length in shape[1:])
        self.embed = nn.Conv2d(shape[0], width, self.patch, self.patch)
        self.token = nn.Parameter(torch.zeros(1, width))
        self.position = nn.Parameter(torch.zeros(1 + count, width))
        self.layers = nn.Sequential(*(_Layer(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Images -> the class token `(B, width)`."""
        below, right = (-length % self.patch for length in x.shape[-2:])
        patches = self.embed(F.pad(x, (0, right, 0, below))).flatten(2).transpose(1, 2)
        first = self.token.expand(len(x), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.position
        return self.norm(self.layers(tokens)[:, 0])


class _Layer(nn.Module):
    """Self-attention and two linear layers, each beside a shortcut.

    Attention is the plain formula: torch's fused kernels have no batching rule.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self._attend(self.norm1(x)))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        split = self.qkv(x).view(batch, count, 3, width // _HEAD_WIDTH, _HEAD_WIDTH)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(_HEAD_WIDTH)).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(batch, count, width)
