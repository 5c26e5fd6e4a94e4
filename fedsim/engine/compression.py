"""Lossy compression of updates on their way to the server.

`encode` gives the tensors that travel, whose bytes are counted; `decode` what the server reads.
With error feedback a client keeps what was lost and adds it to its next update, so that nothing is
lost for good (Seide et al., 2014; Karimireddy et al., 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.config.sections import WireConfig
from fedsim.params import Params, subtract

RESIDUAL = "wire residual"
"""Name of what a client kept, among the entries of its state; no method's entry has a space."""


@dataclass(frozen=True)
class Sent:
    """A group's updates after compression.

    Attributes:
        encoded: What travels, `(C, ...)` by name.
        decoded: What the server reads, shaped like the updates.
        lost: The difference, kept by the clients.
    """

    encoded: Params
    decoded: Params
    lost: Params


def compress(delta: Params, wire: WireConfig) -> Sent:
    """Every client's tensors encoded and decoded again.

    Args:
        delta: `(C, ...)` by name, what was kept from earlier rounds included.
        wire: Which compression, and how strong.
    """
    encoded, decoded = Params(), Params()
    for name, value in delta.items():
        parts = _encode(value, wire)
        encoded |= {name + part: tensor for part, tensor in parts.items()}
        decoded[name] = _decode(parts, value)
    return Sent(encoded, decoded, subtract(delta, decoded))


def _encode(value: Tensor, wire: WireConfig) -> Params:
    flat = value.reshape(len(value), -1)
    match wire.compression:
        case "fp16":
            return {"": flat.half()}
        case "int8":
            scale = flat.abs().amax(1, keepdim=True) / 127
            return {"": (flat / scale.clamp_min(1e-38)).round().to(torch.int8), ".scale": scale}
        case "topk":
            count = math.ceil(wire.topk_fraction * flat.shape[1])
            where = flat.abs().topk(count, dim=1).indices.sort(dim=1).values
            return {"": flat.gather(1, where), ".index": where.to(torch.int32)}
    return {"": flat}


def _decode(parts: Params, like: Tensor) -> Tensor:
    values = parts[""].to(like.dtype)
    if ".scale" in parts:
        values = values * parts[".scale"]
    if ".index" in parts:
        sparse = values.new_zeros(len(like), like[0].numel())
        values = sparse.scatter(1, parts[".index"].long(), values)
    return values.view_as(like)
