"""The only source of randomness: named streams derived from one seed.

Every draw in fedsim takes a generator from here, keyed by where it happens (round, client,
purpose), so that results do not depend on which process draws first. The method's name is never
part of a key. So all methods of a study see the same splits, cohorts, batches and initial weights,
and their differences are paired.
"""

from __future__ import annotations

import hashlib
from operator import index
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def derive(seed: int, *key: Key) -> int:
    """A 63-bit seed for the stream named by `key`.

    Args:
        seed: The experiment's seed.
        *key: What the stream is for, from general to particular, e.g. `"batches", round, client`.

    Returns:
        An integer in [0, 2**63); the same for the same arguments on every machine.

    >>> derive(0, "batches", 3, 7) == derive(0, "batches", 3, 7)
    True
    >>> derive(0, "batches", 3, 7) == derive(0, "batches", 37)
    False
    """
    parts = (f"str:{p}" if isinstance(p, str) else f"int:{index(p)}" for p in (seed, *key))
    text = "\x1f".join(parts)  # NumPy's integers name the same stream as Python's
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_rng(seed: int, *key: Key) -> np.random.Generator:
    """A NumPy generator for the stream named by `key` (see `derive`)."""
    return np.random.default_rng(derive(seed, *key))


def torch_rng(seed: int, *key: Key, device: str = "cpu") -> torch.Generator:
    """A torch generator on `device` for the stream named by `key` (see `derive`).

    Draw on the CPU and move the result where equal numbers on every device matter.
    """
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *key))
