"""Networks over the client axis with clients folded into channels, `(B, C * c, h, w)`.

Layers that act on each channel alone (ReLU, pooling) then take one call for all clients. The
clients' convolutions, each with its own weights, are one grouped convolution, and group norm has C
times the groups. `torch.vmap` computes the same, but moves clients back into the batch before most
layers. Its copies take a quarter of a small network's step.

Flat embeddings are `(C, B, d)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.models.networks.layers import Halve, Mean, Norm, Residual
from fedsim.params import Params


def foldable(module: nn.Module) -> bool:
    """Whether `folded` knows all parts of a module. Shared weights have only one name."""
    if type(module) is nn.Sequential:
        own = [id(part) for part in module if any(True for _ in part.parameters())]
        return len(set(own)) == len(own) and all(map(foldable, module))
    if type(module) is Residual:
        return foldable(module.path) and foldable(module.shortcut)
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros"
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    return type(module) in _RULES


def pools(module: nn.Module) -> bool:
    """Whether a module halves maps, which CPUs do faster with channels last; not in residual ones.

    Measured by `benchmarks/suite`.
    """
    parts = list(module.modules())
    halves = any(isinstance(part, Halve | nn.MaxPool2d | nn.AvgPool2d) for part in parts)
    return halves and not any(isinstance(part, Residual) for part in parts)


def folded(
    module: nn.Module, prefix: str, weights: Params, x: Tensor, channels_last: bool = False
) -> Tensor:
    """A module for every client, with its own weights.

    Args:
        module: A `foldable` one; its own parameters are ignored.
        prefix: The prefix of its tensors' names.
        weights: `(C, ...)` by name.
        x: Images `(C, B, c, h, w)`, or flat embeddings `(C, B, d)`.
        channels_last: Whether channels are the last axis of maps in memory.

    Returns:
        Flat embeddings, or maps `(B, C * c, h, w)` if the module does not flatten them.
    """
    clients = len(x)
    if x.dim() == 5:
        x = x.transpose(0, 1).flatten(1, 2)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
    return _apply(module, prefix, weights, x, clients)


def _apply(module: Any, prefix: str, weights: Params, x: Tensor, clients: int) -> Tensor:
    if type(module) is nn.Sequential:
        for name, part in module._modules.items():  # `named_children` names a layer only once
            x = _apply(part, f"{prefix}.{name}", weights, x, clients)
        return x
    if type(module) is Residual:
        path = _apply(module.path, f"{prefix}.path", weights, x, clients)
        return F.relu(path + _apply(module.shortcut, f"{prefix}.shortcut", weights, x, clients))
    own = {name: weights[f"{prefix}.{name}"] for name, _ in module.named_parameters()}
    return _RULES[type(module)](module, own, x, clients)


def _conv(module: nn.Conv2d, own: Params, x: Tensor, clients: int) -> Tensor:
    bias = own["bias"].flatten() if "bias" in own else None
    groups = clients * module.groups
    how: Any = (module.stride, module.padding, module.dilation, groups)
    return F.conv2d(x, own["weight"].flatten(0, 1), bias, *how)


def _norm(module: nn.GroupNorm, own: Params, x: Tensor, clients: int) -> Tensor:
    groups = clients * module.num_groups
    return F.group_norm(x, groups, own["weight"].flatten(), own["bias"].flatten(), module.eps)


def _checked_norm(module: Norm, own: Params, x: Tensor, clients: int) -> Tensor:
    module.check(x.shape[1] // clients, x.shape[2] * x.shape[3])
    return _norm(module, own, x, clients)


def _linear(module: nn.Linear, own: Params, x: Tensor, clients: int) -> Tensor:
    y = x @ own["weight"].mT
    return y + own["bias"].unsqueeze(1) if "bias" in own else y


def _flat(module: nn.Module, own: Params, x: Tensor, clients: int) -> Tensor:
    return x.reshape(len(x), clients, -1).transpose(0, 1)


def _mean(module: nn.Module, own: Params, x: Tensor, clients: int) -> Tensor:
    return _flat(module, own, x.mean((-2, -1)), clients)


def _alike(module: nn.Module, own: Params, x: Tensor, clients: int) -> Tensor:
    return module(x)


_RULES: dict[type[nn.Module], Callable[[Any, Params, Tensor, int], Tensor]] = {
    nn.Conv2d: _conv,
    nn.GroupNorm: _norm,
    Norm: _checked_norm,
    nn.Linear: _linear,
    nn.Flatten: _flat,
    Mean: _mean,
    **dict.fromkeys((Halve, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.GELU, nn.Identity), _alike),
}
