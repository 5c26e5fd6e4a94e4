"""The families of parts that a study names: each name, and the file behind it.

A part is one file. It holds the part's function or class, and `Options`, the part's own settings,
if it has any. To add one, write its file and name it here. The values are import paths, or paths of
Python files outside the package, so that listing the names imports nothing.

An entry that a script adds to a dict at run time holds in that process alone: such a run is for
`engine.backend: local`. What a part outside the package holds is part of a run's name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.errors import ConfigError, did_you_mean

Family = dict[str, str]
"""Name of a part -> `package.module` or `FILE.py`; with `:NAME`, one class in it."""


def _in(package: str, *names: str) -> Family:
    """Parts that have the names of their files."""
    return {name: f"{package}.{name}" for name in names}


SERVER_OPTIMISERS = _in("fedsim.engine.server_optimisers", "mean", "momentum", "adam", "yogi")
"""`server.optimizer`: the server's step on the averaged update."""

UPDATE_STEPS: Family = {
    "compression": "fedsim.engine.update_steps.compression:Compression",
    "class_weighting": "fedsim.engine.update_steps.class_weighting:ClassWeighting",
}
"""Steps on an update between the client's training and the exact sum."""

SINKS: Family = {"tables": "fedsim.results.tables.writer:TableWriter"}
"""Receivers of a run's rows."""

SCHEMES = _in(
    "fedsim.data.partition.schemes",
    "iid",
    "dirichlet_label",
    "dirichlet_client",
    "dirichlet_balanced",
    "dirichlet_drawn",
    "pathological",
    "quantity",
    "domain",
    "natural",
    "longtail",
)
"""`partition.scheme`: how training samples are split over clients."""

NETWORKS = _in("fedsim.models.networks", "convnet", "lenet", "alexnet", "vgg11", "resnet18", "vit")
"""`models.classifier`: networks trained from scratch. `build(options, shape)` makes one."""

PRIORS = {
    **_in("fedsim.distill.priors", "pixels", "vae", "diffusion"),
    "FILE.py:FUNCTION": "fedsim.distill.priors.gan",
}
"""`distill.prior`: what images are made of. A file's `load(options, request)` makes a `Prior`."""


def load_module(where: str) -> ModuleType:
    """The module at `package.module` or in `FILE.py`.

    The content of a file is part of its module's name: an edited file is never served from memory.

    Raises:
        ConfigError: If there is no such file, or it fails to import.
    """
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{where} cannot be imported: {error}") from error
    path = Path(where).expanduser()
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.py")]
        hint = f"; {did_you_mean(path.name, near)}" if near else ""
        raise ConfigError(f"no file {where!r}{hint}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    name = f"fedsim_user_{path.stem}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ConfigError(
                f"{where} fails to import: {type(error).__name__}: {error}"
            ) from error
    return sys.modules[name]


def load_part(where: str) -> Any:
    """The class or function at `package.module:NAME` or `FILE.py:NAME`.

    Raises:
        ConfigError: If there is no such file or name, or the file fails to import.
    """
    place, colon, name = where.rpartition(":")
    if not colon:
        raise ConfigError(f"{where} names no class: write {where}:NAME")
    members = vars(load_module(place))
    if name not in members:
        raise ConfigError(f"{place} has no {name!r}; {did_you_mean(name, _public(members))}")
    return members[name]


def _public(members: dict[str, Any]) -> list[str]:
    """Names of what a module itself defines."""
    own = members["__name__"]
    return [k for k, v in members.items() if getattr(v, "__module__", "") == own and k[0] != "_"]
