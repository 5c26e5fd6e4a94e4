"""A sweep: many runs on one warm cluster, scheduled by Ray Tune.

A trial's actor holds a coordinator and its client actors. Tune hands the actor from one run to the
next, so processes, imports and data stay warm. Tune only schedules; fedsim itself writes tables and
checkpoints and handles failures. A failed run is a row with status `failed`; the others go on.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import get_current_placement_group

from fedsim.cluster.coordinator import Coordinator
from fedsim.cluster.placement import Placement
from fedsim.cluster.session import Stop, beside_driver
from fedsim.cluster.single_run import mark_ended
from fedsim.config import Experiment
from fedsim.config.tune import EarlyStopping
from fedsim.errors import FedsimError
from fedsim.storage.remote import url_of

from ray import tune  # isort: skip
from ray.tune import Callback  # isort: skip
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler  # isort: skip

_GATE_DEADLINE_S = 120.0


class Gate:
    """Lets the first runs begin together.

    Tune hands a warm actor to the next run and then drops actors that are still starting. Runs that
    are shorter than an actor's start would all end up on one actor. So no run begins before all
    actors have started.
    """

    def __init__(self, expected: int) -> None:
        self._missing, self._open = expected, asyncio.Event()

    async def arrive(self) -> None:
        """One more trial actor has started; returns when all have."""
        self._missing -= 1
        if self._missing <= 0:
            self._open.set()
        await self._open.wait()


class Cell(tune.Trainable):
    """One run as a Tune trial: the first step sets up, every other step is a round."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the client actors; runs come later."""
        group = get_current_placement_group()
        assert group is not None, "Tune places every trial in a group of its own"
        self._coordinator = Coordinator(config["placement"], group)
        self._begun = False
        with suppress(GetTimeoutError):
            ray.get(config["gate"].arrive.remote(), timeout=_GATE_DEADLINE_S)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next run on the same actors."""
        with suppress(Exception):  # an error of the run before, which the driver marks
            self._coordinator.stop()
        self._begun = False
        return True

    def step(self) -> dict[str, Any]:
        """Set up, or one round. A failure is a result, so that the actors stay warm."""
        experiment = self.config["experiment"]
        try:
            if self._begun:
                report = self._coordinator.step()
            else:
                study_dir, command = self.config["study_dir"], self.config["command"]
                report = self._coordinator.begin(experiment, study_dir, command)
                self._begun = True
        except Exception as error:
            return {"done": True, "error": f"{type(error).__name__}: {error}"}
        return {**report, "done": report["finished"]}

    def train(self) -> dict[str, Any]:
        """A step's result without the run's config, which the driver would keep for every trial."""
        result = super().train()
        result.pop("config", None)
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a run's checkpoints are written by its own round loop."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see `save_checkpoint`."""

    def cleanup(self) -> None:
        """End the client actors."""
        self._coordinator.close()


class _Trials(Callback):
    """Reports every trial to the listener, and notes how trials ended that could not report it."""

    def __init__(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        self._listener = listener
        self.ends: dict[str, str] = {}

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """Tune pickles callbacks for a restore, which never happens here."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ends[_run_id(trial)] = "interrupted"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._listener(_run_id(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run_id, last = _run_id(trial), trial.last_result
        if last.get("finished") or last.get("error"):
            self.ends.pop(run_id, None)
        else:
            self.ends[run_id] = "stopped"
            self._listener(run_id, {**last, "stopped": True})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cause = trial.get_pickled_error() or trial.get_error() or "it died, perhaps with its node"
        self._listener(_run_id(trial), {"error": f"the trial's actor failed: {cause}"})


def _run_id(trial: Any) -> str:
    return trial.config["experiment"].run_id


class _Halving(FIFOScheduler):
    """Successive halving among runs of the same method, partition and seed."""

    def __init__(self, settings: EarlyStopping) -> None:
        super().__init__()
        self._settings = settings
        self._of: dict[tuple[str, str, int], ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._peers(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._peers(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._peers(trial).on_trial_complete(tune_controller, trial, result)

    def _peers(self, trial: Any) -> ASHAScheduler:
        """The scheduler of this trial and of all trials that it competes with."""
        e, settings = trial.config["experiment"], self._settings
        key = (e.method, e.partition.model_dump_json(), e.seed)
        if key not in self._of:
            self._of[key] = ASHAScheduler(
                time_attr="round",
                metric="accuracy",
                mode="max",
                max_t=max(e.train.rounds, settings.grace_rounds),
                grace_period=settings.grace_rounds,
                reduction_factor=settings.reduction_factor,
                stop_last_trials=False,  # they report their end themselves
            )
        return self._of[key]


def sweep_on_ray(
    experiments: Sequence[Experiment],
    placement: Placement,
    study_dir: Path,
    stop: Stop,
    listener: Callable[[str, dict[str, Any]], None],
    command: str | None = None,
    early_stopping: EarlyStopping | None = None,
) -> None:
    """Run experiments of one resource shape, as many at once as fit.

    Arguments are those of `fedsim.cluster.single_run.run_on_ray`. The listener is called with a
    run's id and its latest `round`, `accuracy`, `finished`, `stopped` or `error`.

    Raises:
        KeyboardInterrupt: After marking the runs in flight as interrupted.
    """
    scratch = tempfile.mkdtemp(prefix="fedsim-tune-")
    told = _Trials(listener)
    at_once = min(placement.concurrent_runs, len(experiments))
    gate_options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": beside_driver()}
    gate = ray.remote(Gate).options(**gate_options).remote(at_once)
    factory = tune.PlacementGroupFactory([placement.head or {"CPU": 0.0}, *placement.bundles])
    tuner = tune.Tuner(
        tune.with_resources(Cell, factory),
        param_space={
            "placement": placement,
            "study_dir": url_of(study_dir) or str(study_dir),
            "gate": gate,
            "command": command,
            "experiment": tune.grid_search(list(experiments)),
        },
        tune_config=tune.TuneConfig(
            scheduler=None if early_stopping is None else _Halving(early_stopping),
            reuse_actors=True,
            max_concurrent_trials=at_once,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            verbose=0,
            callbacks=[told],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
        ),
    )

    def leave() -> None:
        for run_id, status in told.ends.items():
            with suppress(FedsimError, OSError):  # the other runs are marked all the same
                mark_ended(study_dir, run_id, status)
        shutil.rmtree(scratch, ignore_errors=True)

    stop.nudge, stop.leave = _stop_tune, leave
    try:
        tuner.fit()
        stop.check()
    finally:
        leave()
        stop.nudge = stop.leave = lambda: None


def _stop_tune() -> None:
    """Tune ends gracefully on SIGUSR1; before it listens, the grace period ends the process."""
    if callable(signal.getsignal(signal.SIGUSR1)):
        signal.raise_signal(signal.SIGUSR1)
