"""CLIP-Adapter (Gao et al., arXiv 2110.04544) on image features, trained by federated averaging.

    A(f)   = ReLU(W2 ReLU(W1 f))                    W1 (d/4, d), W2 (d, d/4), no biases
    logits = scale * norm(alpha A(f) + (1 - alpha) f) text^T
    round:   every client trains W1 and W2 on its own features
             W <- sum_k (n_k / n) W_k               for both

alpha is `residual_ratio`; d / 4 is `d / reduction`. The paper's features are CLIP's own, which are
longer than 1. Features of length 1 give the same logits, because A(c f) = c A(f) for c > 0.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.methods.shared.feature_adapter import FeatureAdapter, affine, draw_linear
from fedsim.params import Params


class CLIPAdapterOptions(BaseModel, extra="forbid"):
    """Shape and weight of the adapter; the defaults are the paper's."""

    reduction: int = Field(4, gt=0)
    residual_ratio: float = Field(0.2, ge=0, le=1)


class CLIPAdapter(FeatureAdapter):
    """Federated averaging of a bottleneck on the features of the frozen encoder."""

    Options = CLIPAdapterOptions
    options: CLIPAdapterOptions

    def draw(self, dim: int, rng: torch.Generator) -> Params:
        narrow = max(1, dim // self.options.reduction)
        down = draw_linear("down", dim, narrow, rng, bias=False)
        return down | draw_linear("up", narrow, dim, rng, bias=False)

    def adapt(self, adapter: Params, f: Tensor) -> Tensor:
        alpha = self.options.residual_ratio
        adapted = affine(affine(f, adapter["down.weight"]).relu(), adapter["up.weight"]).relu()
        return alpha * adapted + (1 - alpha) * f
