"""The server's step on the averaged update: optimisers, and averages that weigh by class.

The average of the clients' changes stands in for a gradient (Reddi et al., 2021, algorithm 2):

    momentum  m <- beta m + d                          x <- x + lr m
    adam      m <- beta m + (1 - beta) d               x <- x + lr m / (sqrt(v) + epsilon)
              v <- beta2 v + (1 - beta2) d^2
    yogi      v <- v - (1 - beta2) d^2 sign(v - d^2)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.config.sections import ServerConfig
from fedsim.params import Params

Moments = dict[str, Params]
"""First and second moments by name, kept from round to round."""

SHARE = "class share"
"""Name of every client's class weights among its tensors; no method's tensor has a space."""


def server_step(mean: Params, moments: Moments, server: ServerConfig) -> tuple[Params, Moments]:
    """The change of the model, and the moments for the next round.

    Args:
        mean: Average change of the clients, by name.
        moments: From the last round; {} at first.
        server: Which optimiser, and its settings.
    """
    if server.optimizer == "mean":
        return (mean if server.lr == 1 else {k: server.lr * d for k, d in mean.items()}), moments
    zeros = {k: torch.zeros_like(d) for k, d in mean.items()}
    old_m, old_v = moments.get("m", zeros), moments.get("v", zeros)
    beta = server.momentum
    if server.optimizer == "momentum":
        m = {k: beta * old_m[k] + d for k, d in mean.items()}
        return {k: server.lr * step for k, step in m.items()}, {"m": m}
    m = {k: beta * old_m[k] + (1 - beta) * d for k, d in mean.items()}
    v = {k: _second(old_v[k], d.square(), server) for k, d in mean.items()}
    change = {k: server.lr * m[k] / (v[k].sqrt() + server.epsilon) for k in mean}
    return change, {"m": m, "v": v}


def _second(v: Tensor, square: Tensor, server: ServerConfig) -> Tensor:
    if server.optimizer == "yogi":
        return v - (1 - server.beta2) * square * (v - square).sign()
    return server.beta2 * v + (1 - server.beta2) * square


def weigh_by_class(
    delta: Params, rows: Params, counts: Tensor, samples: Tensor, weighting: float
) -> Params:
    """Client side of class weighting: rows scaled by the client's share of their class.

    A row of class c is to be averaged with weights `w_kc = (1 - m) n_k / N + m n_kc`. Since every
    tensor is averaged with `n_k`, a client sends `w_kc / n_k` times its row, and the factors
    themselves: two sums from which `divide_by_class` makes the weighted average.

    Args:
        delta: `(C, ...)` by name.
        rows: Names of tensors with class rows, and the class of each row, `(rows,)`.
        counts: `(C, N)` training samples per class.
        samples: `(C,)` training samples, n_k; 0 for a ghost.
        weighting: m in (0, 1].

    Returns:
        The scaled tensors, and the factors `(C, N)` under `SHARE`.
    """
    each = (counts / samples.clamp_min(1)[:, None]).to(counts.dtype)
    share = (1 - weighting) / counts.shape[1] + weighting * each
    scaled = {
        name: delta[name] * share[:, classes].view(*delta[name].shape[:2], *[1] * (v.dim() - 2))
        for name, classes in rows.items()
        for v in (delta[name],)
    }
    return delta | scaled | {SHARE: share}


def divide_by_class(mean: Params, rows: Params) -> Params:
    """Server side of class weighting: the average of each row over those who hold its class."""
    if SHARE not in mean:
        return mean
    share = mean[SHARE]
    out = {name: value for name, value in mean.items() if name != SHARE}
    for name, classes in rows.items():
        weight = share[classes].view(-1, *[1] * (out[name].dim() - 1))
        out[name] = torch.where(weight > 0, out[name] / weight.clamp_min(1e-12), 0.0)
    return out
