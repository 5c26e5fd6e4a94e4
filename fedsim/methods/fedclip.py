"""FedCLIP (Lu et al., arXiv 2302.13485): an attention adapter on CLIP's image features.

    a(f)   = softmax(W2 tanh(W1 f + b1) + b2)       over the d features; W1, W2 (d, d)
    logits = scale * norm(a(f) * f) text^T          * elementwise
    round:   every client trains W1, b1, W2, b2 on its own features
             W <- sum_k (n_k / n) W_k               and likewise for the others

The softmax makes a(f) as small as 1/d. Normalising the product to length 1 undoes that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.methods.shared.feature_adapter import FeatureAdapter, affine, draw_linear
from fedsim.params import Params


class FedCLIP(FeatureAdapter):
    """Federated averaging of an attention over the features of the frozen encoder."""

    def draw(self, dim: int, rng: torch.Generator) -> Params:
        return draw_linear("first", dim, dim, rng) | draw_linear("second", dim, dim, rng)

    def adapt(self, adapter: Params, f: Tensor) -> Tensor:
        hidden = affine(f, adapter["first.weight"], adapter["first.bias"]).tanh()
        attention = affine(hidden, adapter["second.weight"], adapter["second.bias"]).softmax(-1)
        return attention * f
