"""What a runner says: when its rounds ended, with which versions, and the final weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

PREFIX = "PEERS "
"""Begins the one line of a runner's output that is meant for the harness."""


class Stopwatch:
    """Seconds since the process was started; the harness says when that was."""

    def __init__(self) -> None:
        self._started = float(os.environ.get("PEERS_STARTED", time.time()))
        self._ends: list[float] = []

    def round_done(self) -> None:
        """The next round has ended: aggregated, and ready for the one after it."""
        self._ends.append(round(time.time() - self._started, 4))

    def emit(self, weights: Mapping[str, np.ndarray], out: Path, *packages: str) -> None:
        """Save the final weights, and print everything else as one line of JSON."""
        import torch

        np.savez(out, **weights)
        versions = {name: version(name) for name in packages} | {"torch": torch.__version__}
        versions["torch commit"] = torch.version.git_version
        print(PREFIX + json.dumps({"ends": self._ends, "versions": versions}), flush=True)
