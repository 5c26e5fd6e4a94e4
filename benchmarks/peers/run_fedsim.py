"""fedsim as `fedsim run` runs it, with a stopwatch in the place of its progress bar.

    python -m benchmarks.peers.run_fedsim WORK OUT [ray | local]

Everything counts that a run does: tables, a checkpoint and an evaluation per round (on one sample
per class, for it cannot be switched off), and reading the data anew.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.stopwatch import Stopwatch
from fedsim.config.study_file import load_study
from fedsim.driver.data_checks import check_data
from fedsim.driver.launch import Launcher
from fedsim.driver.plan import study_lock
from fedsim.methods import METHODS


def main(work: str, out: str, backend: str = "ray") -> None:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as output:
        study = load_study(
            Path(work) / "study.yaml", [f"output={output}", f"engine.backend={backend}"]
        )
        [config] = study.experiments(METHODS)

        def heard(_: str, news: dict[str, Any]) -> None:
            if news.get("round"):
                watch.round_done()

        check_data([config])
        with study_lock(study.folder), Launcher(study.folder) as launcher:
            launcher.run([config], heard)

        from fedsim.engine.checkpoint import CheckpointFolder

        last = CheckpointFolder(study.folder, config.run_id).latest()
    assert last is not None
    trained = ("keys",) if config.use == "cachefl" else tuple(last["state"])
    weights = {name: last["state"][name].numpy() for name in trained}
    watch.emit(weights, Path(out), "fedsim", "ray")


if __name__ == "__main__":
    main(*sys.argv[1:])
