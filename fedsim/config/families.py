"""The families of parts that a study names: each name, and the file behind it.

A part is one file. It holds the part's function or class, and `Options`, the part's own settings.
To add one, write its file and give it a line here. The values are import paths, or paths of Python
files outside the package, so that listing the names imports nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fedsim.errors import ConfigError, did_you_mean

Family = dict[str, str]
"""Name of a part -> `package.module` or `FILE.py`."""


SCHEMES: Family = {
    "iid": "fedsim.data.partition.schemes.iid",
    "dirichlet_label": "fedsim.data.partition.schemes.dirichlet_label",
    "dirichlet_client": "fedsim.data.partition.schemes.dirichlet_client",
    "dirichlet_balanced": "fedsim.data.partition.schemes.dirichlet_balanced",
    "dirichlet_drawn": "fedsim.data.partition.schemes.dirichlet_drawn",
    "pathological": "fedsim.data.partition.schemes.pathological",
    "quantity": "fedsim.data.partition.schemes.quantity",
    "domain": "fedsim.data.partition.schemes.domain",
    "natural": "fedsim.data.partition.schemes.natural",
    "longtail": "fedsim.data.partition.schemes.longtail",
}
"""How training samples are split over clients: `partition.scheme`."""


def load_module(where: str) -> ModuleType:
    """The module at `package.module` or in `FILE.py`.

    The content of a file is part of its module's name: an edited file is never served from memory.

    Raises:
        ConfigError: If there is no such file, or it fails to import.
    """
    if not where.endswith(".py"):
        return importlib.import_module(where)
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
