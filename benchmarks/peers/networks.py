"""The two models of the comparison in plain torch: what every runner trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cnn(nn.Module):
    """Two convolutions and two linear layers for 28x28 images, 80,202 numbers."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 128), nn.ReLU()),
        )
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class CacheHead(nn.Module):
    """Tip-Adapter's cache beside frozen class embeddings; the keys `(M, d)` alone are trained."""

    def __init__(
        self, keys: Tensor, text: Tensor, scale: float, ratio: float, sharpness: float
    ) -> None:
        super().__init__()
        self.scale, self.ratio, self.sharpness = scale, ratio, sharpness
        self.keys = nn.Parameter(keys.clone())
        values = torch.eye(len(text)).repeat_interleave(len(keys) // len(text), 0)
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        near = torch.exp(self.sharpness * (f @ self.keys.T - 1))
        return self.scale * (f @ self.text.T) + self.ratio * (near @ self.values)
