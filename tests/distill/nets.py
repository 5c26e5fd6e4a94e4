"""Tiny networks and clients' moves in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.distill.augment import draw_augmentation
from fedsim.distill.student import Step
from fedsim.params import Params

NUM_CLASSES, SIDE = 3, 6


def network(params: Params, x: Tensor) -> Tensor:
    """Convolution, smooth nonlinearity, linear layer: smooth, so that differences are gradients."""
    h = F.conv2d(x, params["conv.weight"], params["conv.bias"], padding=1).tanh()
    return F.avg_pool2d(h, 3).flatten(1) @ params["head.weight"].T + params["head.bias"]


def weights(num_clients: int, seed: int = 0) -> Params:
    """Stacked weights of `network`."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        "conv.weight": (2, 1, 3, 3),
        "conv.bias": (2,),
        "head.weight": (NUM_CLASSES, 8),
        "head.bias": (NUM_CLASSES,),
    }
    return {
        k: torch.randn(num_clients, *shape, generator=rng, dtype=torch.float64)
        for k, shape in shapes.items()
    }


def problem(num_clients: int = 2, num_images: int = 4) -> dict[str, Params | Tensor]:
    """A `Lesson` without its steps: starts, ends, images, labels and step sizes."""
    rng = torch.Generator().manual_seed(5)
    start = weights(num_clients)
    size = (num_clients, num_images, 1, SIDE, SIDE)
    lr = torch.linspace(0.3, 0.5, num_clients, dtype=torch.float64)
    return {
        "start": start,
        "end": {k: v + 0.1 * weights(num_clients, seed=1)[k] for k, v in start.items()},
        "images": torch.rand(size, generator=rng, dtype=torch.float64) * 2 - 1,
        "labels": torch.randint(NUM_CLASSES, (num_clients, num_images), generator=rng),
        "lr": lr,
    }


def steps(
    count: int, num_clients: int = 2, num_images: int = 4, operations: Sequence[str] = ()
) -> list[Step]:
    """Batches in random orders; the second client's last place is padding."""
    rng = torch.Generator().manual_seed(7)
    size = num_images - 1
    mask = torch.ones(num_clients, size, dtype=torch.bool)
    mask[1:, -1] = False
    return [
        Step(
            torch.stack([torch.randperm(num_images, generator=rng)[:size] for _ in mask]),
            mask,
            tuple(draw_augmentation(operations, size, rng) for _ in mask),
        )
        for _ in range(count)
    ]
