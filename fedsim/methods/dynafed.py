"""DynaFed (Pi et al., CVPR 2023, arXiv 2211.10878): the server distils the global trajectory, once.

    w_r    the global network after round r         L   rounds whose checkpoints are kept
    D      a synthetic set on which a student makes the moves w_t -> w_{t+s} of t = 0 .. L - s

    round 1 .. L:   FedAvg
    end of L:       D <- match the segments of w_0 .. w_L                      (`fedsim.distill`)
    round L ..:     w <- FedAvg's mean, then trained on D

The mean of the clients' changes is all that the server needs. Secure aggregation is therefore
possible, and no client's own move is inverted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pydantic import Field

from fedsim.config import MethodConfig
from fedsim.distill.client_sets import ClientMove
from fedsim.distill.distilled_set import NOBODY
from fedsim.errors import ConfigError
from fedsim.methods.base import Executor, Made, Predictor, Received, State, Task
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.shared.from_prior import FromPrior
from fedsim.methods.shared.server_training import ServerTraining, Training, train_on_images
from fedsim.methods.shared.trains_on_sets import Event, events_of, report
from fedsim.models.image_arrays import from_unit_range
from fedsim.params import Params, add, to_device


class DynaFedOptions(ServerTraining, extra="forbid"):
    """The part of the trajectory that is distilled."""

    trajectory_rounds: int = Field(3, gt=0)
    """L: rounds of plain FedAvg whose checkpoints are kept."""
    segment_rounds: int = Field(1, gt=0)
    """s: rounds between the ends of a segment."""


class DynaFed(FromPrior, FedAvg):
    """Federated averaging, corrected on images that mimic the global dynamics."""

    sections = ("distill",)
    Options = DynaFedOptions
    options: DynaFedOptions

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        options = DynaFedOptions.model_validate(config.options)
        if options.segment_rounds > options.trajectory_rounds:
            raise ConfigError(
                f"options.segment_rounds is {options.segment_rounds}, longer than the trajectory "
                f"of {options.trajectory_rounds} rounds (options.trajectory_rounds)"
            )
        if options.trajectory_rounds > config.train.rounds:
            raise ConfigError(
                f"options.trajectory_rounds is {options.trajectory_rounds}, but there are "
                f"{config.train.rounds} rounds (train.rounds): dynafed would never distil"
            )

    def setup(self, task: Task, rng: torch.Generator) -> State:
        weights = super().setup(task, rng)
        return {"weights": weights, "path": [weights], "set": {}, "events": [], "round": 0}

    def message(self, state: State) -> Params:
        return state["weights"]

    def aggregate(self, state: State, received: Received) -> State:
        weights = add(state["weights"], received.mean)
        path = state["path"]
        if received.round <= self.options.trajectory_rounds:
            path = [*path, weights]
        return state | {"weights": weights, "path": path, "round": received.round}

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        if received.round < self.options.trajectory_rounds:
            return state
        if received.round == self.options.trajectory_rounds:
            made, events = self._distilled(state, executor)
            state = state | {"set": made, "events": events, "path": []}
        if not state["set"]:
            return state
        made = state["set"]
        work = Training(
            self.net,
            to_device(state["weights"], "cpu"),
            made["images"].cpu(),
            made["labels"].cpu(),
            self.options.train_config(),
            self.options.augmentation(self.config.distill),
            (self.config.train_seed, received.round, ""),
            executor.device,
        )
        (weights,) = executor.map(train_on_images, [work])
        return state | {"weights": to_device(weights, self.task.device)}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return partial(self.net, state["weights"])

    def made(self, state: State) -> Made | None:
        if state["round"] != self.options.trajectory_rounds:
            return None
        return report([state["set"]] if state["set"] else [], state["events"])

    def _distilled(self, state: State, executor: Executor) -> tuple[dict[str, Any], list[Event]]:
        """One set for the whole trajectory, empty if it fails, and the events to report."""
        path, step = state["path"], self.options.segment_rounds
        pairs = zip(path, path[step:], strict=False)
        segments = tuple((a, b) for a, b in pairs if any((a[k] != b[k]).any() for k in a))
        if not segments:
            return {}, [("distillation", "the global network has not moved: no set", NOBODY)]
        classes = tuple(range(self.task.num_classes))
        source = ClientMove(NOBODY, segments, classes)
        (made,) = self.distilled(
            [(self.net, [source])], self.config.distill, state["round"], executor
        )
        if not made.finite:
            return {}, events_of([made])
        images = from_unit_range(made.images)
        kept = {"client": NOBODY, "images": images, "labels": made.labels, "row": made.row()}
        return kept, []
