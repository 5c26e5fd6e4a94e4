"""Base of methods whose server trains networks on the union of synthetic sets.

w      surrogate: the small network that clients receive     v_m   larger networks of the server
D_k    the synthetic set of client k

round:   D <- union of all D_k of the round, and of earlier rounds that are replayed
         w and every v_m are trained on D, each from its last weights
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field

from fedsim.config.classifier import ClassifierConfig
from fedsim.distill.distilled_set import NOBODY, SyntheticSet
from fedsim.methods.base import Executor, Labelled, Made, Predictor, Received, State, Task
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.shared.server_training import ServerTraining, Training, train_on_images
from fedsim.models.classifiers import Classifier
from fedsim.models.image_arrays import from_unit_range
from fedsim.params import Params, to_device


class SetOptions(ServerTraining, extra="forbid"):
    """The server's networks, and the sets that it trains them on."""

    global_models: tuple[ClassifierConfig, ...] = Field((), strict=False)
    """The larger networks: names such as `vgg11`, or blocks like `models.classifier`."""
    global_momentum: float = Field(0.9, ge=0, lt=1)
    global_weight_decay: float = Field(1e-5, ge=0)
    replay: int = Field(0, ge=0)
    """Number of earlier rounds whose sets stay in the union."""


Event = tuple[str, str, int]
"""Kind, message and client of an event; a client of -1 is none."""


def events_of(sets: Sequence[SyntheticSet]) -> list[Event]:
    """The events of a round's sets, for `Made.events`."""
    lost = "its synthetic set has pixels that are NaN or infinite, and is left out"
    found = [("diverged", lost, one.client_id) for one in sets if not one.finite]
    if any(one.crowded for one in sets):
        fewer = "distill.clients_at_once sets did not fit in memory together: made in smaller parts"
        found.append(("out_of_memory", fewer, NOBODY))
    return found


def report(sets: Sequence[Mapping[str, Any]], events: Sequence[Event]) -> Made | None:
    """A round's sets as the state keeps them, and its events, for people to look at.

    Args:
        sets: `client`, `labels`, `row` and, unless features were distilled, `images` of each.
        events: The events to report, also of a round without sets.
    """
    if not sets:
        return Made(None, torch.zeros(0), events=tuple(events)) if events else None
    labels = torch.cat([s["labels"] for s in sets]).cpu()
    clients = torch.cat([torch.full((len(s["labels"]),), s["client"]) for s in sets])
    images = None
    if "images" in sets[0]:
        images = Labelled(torch.cat([s["images"] for s in sets]).cpu(), labels)
    return Made(images, clients, tuple(s["row"] for s in sets), tuple(events))


class TrainsOnSets(FedAvg):
    """Base of methods that average no weights, because the server trains on its clients' sets."""

    reduction: ClassVar[Literal["sum", "keep"]] = "keep"
    averages = False
    sections: ClassVar[tuple[str, ...]] = ("distill",)
    Options: ClassVar[type[BaseModel]] = SetOptions
    options: SetOptions

    def client_sets(
        self, state: State, received: Received, executor: Executor
    ) -> list[SyntheticSet]:
        """The round's sets, in the order of client ids."""
        raise NotImplementedError

    def before_training(self, state: State, received: Received) -> State:
        """The state whose networks are trained on the union next."""
        return state

    def goes_on(self) -> bool:
        """Whether a client's next set starts from its last one, which then stays in the state."""
        return False

    def memory(self, state: State, client: int, classes: Sequence[int]) -> Mapping[str, Any]:
        """The start that the client's last set gives to a set of the same classes, or {}."""
        known = [s for s in state["sets"] if self.goes_on() and s["client"] == client]
        if known and set(known[-1]["labels"].tolist()) == set(classes):
            return known[-1]["memory"]
        return {}

    def check_task(self) -> None:
        _ = self.net, self.global_nets

    @cached_property
    def global_nets(self) -> dict[str, Classifier]:
        """The networks that the server trains beside the surrogate, by their name in tables."""
        assert self.task.image_shape is not None
        names = Counter(settings.name for settings in self.more_networks())
        found = {}
        for number, settings in enumerate(self.more_networks(), 1):
            name = f"{settings.name}_{number}" if names[settings.name] > 1 else settings.name
            found[name] = Classifier(settings, self.task.image_shape, self.task.num_classes)
        return found

    def more_networks(self) -> tuple[ClassifierConfig, ...]:
        """The architectures of `global_nets`."""
        return self.options.global_models

    def sent_networks(self) -> tuple[str, ...]:
        """The names in `global_nets` of networks that clients receive and train."""
        return ()

    def setup(self, task: Task, rng: torch.Generator) -> State:
        surrogate = to_device(self.net.init(rng), task.device)
        nets = {k: to_device(net.init(rng), task.device) for k, net in self.global_nets.items()}
        return {"surrogate": surrogate, "nets": nets, "sets": [], "events": [], "round": 0}

    def message(self, state: State) -> Params:
        return state["surrogate"]

    def aggregate(self, state: State, received: Received) -> State:
        return state | {"round": received.round, "events": []}

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        found = self.client_sets(state, received, executor)
        made = [one for one in found if one.finite]
        sets = self._union(state["sets"], made, received.round)
        state = state | {"sets": sets, "events": events_of(found)}
        state = self.before_training(state, received)
        if not made:
            return state
        trained = executor.map(
            train_on_images, self._trainings(state, received.round, executor.device)
        )
        surrogate, *larger = (to_device(weights, self.task.device) for weights in trained)
        nets = dict(zip(self.global_nets, larger, strict=True))
        return state | {"surrogate": surrogate, "nets": nets}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return partial(self.net, state["surrogate"])

    def predictors(self, state: State) -> Mapping[str, Predictor]:
        return {name: partial(net, state["nets"][name]) for name, net in self.global_nets.items()}

    def made(self, state: State) -> Made | None:
        sets = [s for s in state["sets"] if s["round"] == state["round"]]
        return report(sets, state["events"])

    def _union(
        self, sets: list[dict[str, Any]], made: list[SyntheticSet], round: int
    ) -> list[dict[str, Any]]:
        """The sets that are still needed and the new ones, with images as uint8."""
        oldest, last = round - self.options.replay, {s["client"]: s["round"] for s in sets}
        kept = [
            s
            for s in sets
            if s["round"] >= oldest or (self.goes_on() and s["round"] == last[s["client"]])
        ]
        return kept + [
            {
                "client": s.client_id,
                "round": round,
                "images": from_unit_range(s.images),
                "labels": s.labels,
                "row": s.row(),
                "memory": s.memory,
            }
            for s in made
        ]

    def _trainings(self, state: State, round: int, device: str) -> list[Training]:
        """The surrogate's training, and those of the larger networks."""
        options = self.options
        union = [s for s in state["sets"] if s["round"] >= round - options.replay]
        images, labels = (torch.cat([s[k] for s in union]).cpu() for k in ("images", "labels"))
        small = options.train_config()
        large = small.model_copy(
            update={
                "momentum": options.global_momentum,
                "weight_decay": options.global_weight_decay,
            }
        )
        models = [("", self.net, state["surrogate"])]
        models += [(name, net, state["nets"][name]) for name, net in self.global_nets.items()]
        on_clients = ("", *self.sent_networks())
        return [
            Training(
                net,
                to_device(start, "cpu"),
                images,
                labels,
                small if name in on_clients else large,
                options.augmentation(self.config.distill),
                (self.config.train_seed, round, name),
                device,
            )
            for name, net, start in models
        ]
