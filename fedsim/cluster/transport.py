"""Tensors on their way between processes.

Ray copies a NumPy array once, straight into the object store. A tensor is pickled byte by byte on
either side, which took longer than Ray itself for clients' states. The received tensor is a copy,
because the store's memory is read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.params import map_tensors


@dataclass(frozen=True)
class Packed:
    """A tensor as an array of the same bytes."""

    array: np.ndarray
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Packed:
        """Types that NumPy lacks, such as bfloat16, travel as bytes."""
        whole = tensor.detach().cpu().contiguous()
        try:
            return cls(whole.numpy(), tensor.dtype)
        except TypeError:
            return cls(whole.unsqueeze(-1).view(torch.uint8).numpy(), tensor.dtype)

    def tensor(self) -> Tensor:
        """The tensor again, on the CPU."""
        found = torch.from_numpy(self.array.copy())
        return found if found.dtype == self.dtype else found.view(self.dtype).squeeze(-1)


def pack(tree: Any) -> Any:
    """Every tensor in nested dicts, sequences and dataclasses as `Packed`."""
    return map_tensors(tree, Packed.of)


def unpack(tree: Any) -> Any:
    """The tree that `pack` was given, on the CPU."""
    return map_tensors(tree, Packed.tensor, Packed)
