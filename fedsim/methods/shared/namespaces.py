"""Several sets of tensors in one message.

A message and an update are flat: names, and tensors whose bytes are counted. A method that sends
something beside a network's weights gives it a namespace. A tensor there is called
`namespace/name`. The weights keep their own names, which hold no slash.
"""

from __future__ import annotations

from fedsim.params import Params


def into_namespace(namespace: str, params: Params) -> Params:
    """The same tensors under names of a namespace; the empty one changes no name.

    >>> import torch
    >>> list(into_namespace("control", {"conv.weight": torch.zeros(1)}))
    ['control/conv.weight']
    """
    return {f"{namespace}/{k}": v for k, v in params.items()} if namespace else dict(params)


def namespace_of(name: str) -> str:
    """The namespace of a tensor's name.

    >>> namespace_of("control/conv.weight"), namespace_of("conv.weight")
    ('control', '')
    """
    return name.rpartition("/")[0]


def from_namespace(params: Params, namespace: str = "") -> Params:
    """The tensors of a namespace, under the names that they have within it."""
    return {k.rpartition("/")[2]: v for k, v in params.items() if namespace_of(k) == namespace}
