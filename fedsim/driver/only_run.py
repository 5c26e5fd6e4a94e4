"""`fedsim run` is about one run: which one, and how to choose it where a study has several."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from fedsim.config import Experiment
from fedsim.errors import ConfigError


def only_run(experiments: Sequence[Experiment], source: str) -> Experiment:
    """The one experiment that `fedsim run` is about.

    Raises:
        ConfigError: If the study describes several; the message says how to choose one.
    """
    if len(experiments) == 1:
        return experiments[0]
    raise ConfigError(
        f"{source} describes {len(experiments)} runs: use `fedsim sweep` for all of them, or "
        f"choose one by adding, for example: {_choice(experiments)}"
    )


def _choice(experiments: Sequence[Experiment]) -> str:
    """The overrides that leave the first experiment alone."""
    first = experiments[0]
    chosen = {"method": first.method, "seed": str(first.seed)}
    chosen = {k: v for k, v in chosen.items() if any(str(getattr(e, k)) != v for e in experiments)}
    alike = [e.flat() for e in experiments if (e.method, e.seed) == (first.method, first.seed)]
    varying = {k: v for k, v in first.flat().items() if any(e.get(k) != v for e in alike)}
    if "partition.scheme" in varying:  # it replaces the whole entry: say all of it
        needed = ("dirichlet_alpha", "classes_per_client", "size_sigma", "imbalance_factor")
        own = {f"partition.{key}": getattr(first.partition, key) for key in needed}
        varying |= {key: value for key, value in own.items() if value is not None}
    if len(varying) > 1:  # follows from the others, unless it is an axis itself
        varying.pop("engine.group_size", None)
    chosen |= {key: v if isinstance(v, str) else json.dumps(v) for key, v in varying.items()}
    return " ".join(shlex.quote(f"{key}={value}") for key, value in chosen.items())
