"""A step towards a run's inputs: arrays that are made once per node, and all they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedsim.storage.array_cache import Arrays, address, shared_arrays


@dataclass(frozen=True, eq=False)
class InputStep:
    """One entry of the node's store. Nothing is computed before `arrays` are asked for.

    Attributes:
        key: Everything the arrays depend on, as JSON values. A step that reads another one's
            arrays has its address in here.
        make: Computes the arrays by name.

    >>> import numpy as np
    >>> plain = InputStep({"kind": "example", "format": 1}, lambda: {"x": np.arange(3)})
    >>> double = InputStep({"of": plain.address}, lambda: {"y": 2 * plain.arrays["x"]})
    >>> sorted(arrays_of([plain, double]))
    ['x', 'y']
    """

    key: dict[str, Any]
    make: Callable[[], Arrays]

    @cached_property
    def address(self) -> str:
        """The entry's name: a hash of its key."""
        return address(self.key)

    @cached_property
    def arrays(self) -> Arrays:
        """Read-only, memory-mapped arrays: from the node's store, or made now."""
        return shared_arrays(self.key, self.make)


def arrays_of(steps: Iterable[InputStep]) -> Arrays:
    """The arrays of all steps; a later step's replace those of the same name."""
    return {name: array for step in steps for name, array in step.arrays.items()}
