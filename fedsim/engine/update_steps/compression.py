"""Lossy compression of updates on their way to the server (`wire.compression`).

The encoded tensors travel, and their bytes are counted. The server reads the decoded ones. With
error feedback a client keeps the difference and adds it to its next update, so nothing is lost for
good (Seide et al., 2014; Karimireddy et al., 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.config.sections import WireConfig
from fedsim.engine.update_steps.base import GroupContext, Place, Sent, UpdateStep
from fedsim.params import Params, add, subtract

NAME = "compression"


class Compression(UpdateStep):
    """Half precision, 8 bits with one scale per tensor, or the largest entries alone."""

    place = Place.COMPRESS
    section = "wire"
    settings: WireConfig

    @classmethod
    def wanted(cls, settings: WireConfig) -> bool:
        return settings.compression != "none"

    def on_clients(self, sent: Sent, group: GroupContext) -> Sent:
        delta, feedback = sent.update.delta, self.settings.error_feedback
        if feedback:
            lost = {name: torch.zeros_like(value) for name, value in delta.items()}
            for client, kept in enumerate(group.kept):
                for name, value in kept.items():
                    lost[name][client] = value
            delta = add(delta, lost)
        packet = compress(delta, self.settings)
        return replace(
            sent,
            update=replace(sent.update, delta=packet.decoded),
            encoded=packet.encoded,
            kept={**sent.kept, NAME: packet.lost} if feedback else sent.kept,
        )


@dataclass(frozen=True)
class Packet:
    """A group's tensors as they travel, as the server reads them, and what was lost; `(C, ...)`."""

    encoded: Params
    decoded: Params
    lost: Params


def compress(delta: Params, wire: WireConfig) -> Packet:
    """Every client's tensors encoded and decoded again.

    Args:
        delta: `(C, ...)` by name.
        wire: Which compression, and how strong.
    """
    encoded, decoded = Params(), Params()
    for name, value in delta.items():
        parts = _encode(value, wire)
        encoded |= {name + part: tensor for part, tensor in parts.items()}
        decoded[name] = _decode(parts, value)
    return Packet(encoded, decoded, subtract(delta, decoded))


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
