"""The cache model as two functions (Tip-Adapter, Zhang et al., ECCV 2022, equations 4 and 5).

Leading axes broadcast, so the same lines serve one model and a stack of clients.
"""

from __future__ import annotations

from torch import Tensor


def text_logits(features: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """Zero-shot CLIP: scaled cosine to every class embedding.

    Args:
        features: `(..., B, d)`, L2-normalised.
        text: `(..., num_classes, d)`, L2-normalised.
        logit_scale: CLIP's temperature, usually 100.

    Returns:
        `(..., B, num_classes)`.
    """
    return logit_scale * (features @ text.transpose(-1, -2))


def affinity(features: Tensor, keys: Tensor, sharpness: float | Tensor) -> Tensor:
    """`exp(-sharpness * (1 - features keys^T))`, `(..., B, num_keys)`; see `cache_logits`."""
    # The keys come first: their gradient then has their layout and need not be copied.
    cosine = (keys @ features.transpose(-1, -2)).transpose(-1, -2)
    return affinity_of_cosine(cosine, sharpness)


def affinity_of_cosine(cosine: Tensor, sharpness: float | Tensor) -> Tensor:
    """`exp(-sharpness * (1 - cosine))`, of the same shape."""
    return (sharpness * (cosine - 1)).exp()


def cache_logits(
    features: Tensor, keys: Tensor, values: Tensor, sharpness: float | Tensor
) -> Tensor:
    """`exp(-sharpness * (1 - features keys^T)) values`.

    Args:
        features: `(..., B, d)`, L2-normalised.
        keys: `(..., num_keys, d)`.
        values: `(..., num_keys, num_classes)`, one-hot labels in Tip-Adapter.
        sharpness: Tip-Adapter's beta, > 0; a tensor broadcasts over `(..., B, num_keys)`.

    Returns:
        `(..., B, num_classes)`.

    >>> import torch
    >>> cache_logits(torch.eye(2), torch.eye(2), torch.eye(2), sharpness=5.0)
    tensor([[1.0000, 0.0067],
            [0.0067, 1.0000]])
    """
    return affinity(features, keys, sharpness) @ values
