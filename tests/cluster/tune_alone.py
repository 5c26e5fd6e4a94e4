"""Run as a process: Ray Tune on its own, to see which of its habits fedsim still has to change.

Arguments are a folder, and `settled` to have what `fedsim.cluster.session` sets in the environment.
Prints one JSON object; `test_sweep.py` says what it must be.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

if "settled" in sys.argv:
    importlib.import_module("fedsim.cluster.session")

import ray
from ray import tune

SLOW_START_S, NUM_TRIALS, AT_ONCE = 2.0, 6, 2


class Short(tune.Trainable):
    """A run that takes less time than the start of its actor, as those of the quickstart do."""

    def setup(self, config: dict[str, Any]) -> None:
        time.sleep(SLOW_START_S)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "folder": os.getcwd(), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class Handlers(tune.Callback):
    """Collects who is told of Ctrl+C while trials run."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen.add(signal.getsignal(signal.SIGINT))


def main(folder: Path) -> None:
    ray.init(
        address="local",
        num_cpus=AT_ONCE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    handlers, mine = Handlers(), signal.getsignal(signal.SIGINT)
    tuner = tune.Tuner(
        Short,
        param_space={"number": tune.grid_search(list(range(NUM_TRIALS)))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=AT_ONCE),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(folder),
            verbose=0,
            callbacks=[handlers],
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
        ),
    )
    with redirect_stdout(io.StringIO()) as said:
        results = [result.metrics or {} for result in tuner.fit()]
    ray.shutdown()
    found = {
        "actors": len({result["pid"] for result in results}),
        "changes the folder": {result["folder"] for result in results} != {os.getcwd()},
        "talks": said.getvalue() != "",
        "takes Ctrl+C": handlers.seen != {mine},
        "writes results": any(folder.rglob("result.json")),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
