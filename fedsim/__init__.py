"""Federated learning of vision models, simulated on a Ray cluster.

`fedsim.load(path)` returns a study's tables as DataFrames; everything else is reached from the
command line (`fedsim --help`) or from the modules themselves. Names here are loaded on first use,
so that `import fedsim` costs nothing.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.errors import FedsimError
    from fedsim.results.study import load

__all__ = ["FedsimError", "__version__", "load"]

_HOMES = {"FedsimError": "fedsim.errors", "load": "fedsim.results.study"}


def __getattr__(name: str) -> Any:
    """Public names, imported from where they live on first use (PEP 562)."""
    if name == "__version__":
        with suppress(PackageNotFoundError):  # a source tree that was never installed
            return version("fedsim")
        return "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
