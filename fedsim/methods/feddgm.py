"""FedDGM (Jia et al., ECCV 2024, arXiv 2312.01537): the server distils what clients have learned.

    w        surrogate: the small network that clients train     v_m   larger networks of the server
    w_k      client k's surrogate after its local training       D_k   its synthetic set

    round:   every client k trains w on its own images and sends w_k - w
             for every k:  D_k <- images on which a student makes the move w -> w_k,
                           made of a generator's latents           (`fedsim.distill`)
             D <- union of all D_k                                 (this round's alone)
             w and every v_m are trained on D, from where they were

Clients' weights are never averaged, and only w is sent down. The algorithm and its defaults are
those of the public code; where that contradicts itself is told in docs/methods/feddgm.md.

The server needs every client's own weights: secure aggregation is out of the question, and the set
D_k is an inversion of them. `skip_absent` also tells it how many images of each class a client has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field

from fedsim.config import Experiment
from fedsim.distill.latents import LoadPrior, image_priors
from fedsim.distill.sets import Source, SyntheticSet, Work, distil
from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Executor, Received, State, Update
from fedsim.methods.synthetic_sets import ClientSet, SetOptions, TrainsOnSets
from fedsim.methods.training import train_apart
from fedsim.params import Params, add, stack, subtract, to_device, unstack

COUNTS = "label counts"
"""What `skip_absent` sends; no module path has a space."""


class FedDGMOptions(SetOptions, extra="forbid"):
    """Which variant of the algorithm it is."""

    skip_absent: bool = False
    """Only images of classes that a client holds. It tells the server its label counts."""
    segments: int = Field(1, gt=0)
    """Checkpoints of its local training that a client sends, the end included; each stretch between
    two of them is matched. Uploads grow as many times."""
    warm_start: bool = False
    """Go on from a client's latents and step size of its last round."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds of plain FedAvg before the first distillation."""


class FedDGM(TrainsOnSets):
    """Federated learning by distillation with a generative prior."""

    Options = FedDGMOptions

    @property
    def own(self) -> FedDGMOptions:
        """The method's options, typed."""
        assert isinstance(self.options, FedDGMOptions)
        return self.options

    @classmethod
    def check(cls, config: Experiment) -> None:
        words, names = config.distill.words, config.data.classnames
        if words and names and len(words) != len(names):
            raise ConfigError(f"distill.words has {len(words)} words for {len(names)} classes")

    def check_task(self) -> None:
        super().check_task()
        load_prior, _ = self.priors
        load_prior()

    @property
    def priors(self) -> tuple[LoadPrior, LoadPrior]:
        """What sets are made of, and what noise is."""
        names, shape, device = self.task.classnames, self.task.image_shape, self.task.device
        assert shape is not None
        return image_priors(self.config, names, shape, str(device))

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        start = weights = stack(message, batches.num_clients)
        extra: list[Params] = [{} for _ in batches.client_ids]
        for number, part in enumerate(_parts(batches, self.own.segments), 1):
            weights = add(weights, train_apart(weights, self.net.on_clients, part))
            if number < self.own.segments:
                for c, sent in enumerate(extra):
                    own = unstack(subtract(weights, start), c)
                    sent |= {_checkpoint(number, k): v for k, v in own.items()}
        if self.own.skip_absent:
            counts = batches.label_counts(self.task.num_classes).int()
            for c, sent in enumerate(extra):
                sent[COUNTS] = counts[c]
        delta = subtract(weights, start)
        return Update(delta, batches.num_samples, linear=False, extra=tuple(extra)), client_state

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        if received.round <= self.own.warmup_rounds:
            return state | {"surrogate": add(state["surrogate"], received.average())}
        return super().finish_round(state, received, executor, rng)

    def client_sets(self, state: State, received: Received, executor: Executor) -> list[ClientSet]:
        sources = [self._source(state, client, update) for client, update in received.kept]
        sources = [source for source in sources if source.classes and source.segments]
        size = self.config.distill.clients_at_once
        groups = [sources[i : i + size] for i in range(0, len(sources), size)]
        items = [
            Work(
                tuple(group),
                self.net,
                self.config.distill,
                *self.priors,
                self.config.train_seed,
                received.round,
                str(self.task.device),
                self.config.engine.threads,
            )
            for group in groups
        ]
        return [client_set(made) for found in executor.map(distil, items) for made in found]

    def keeps(self, client_set: Any, latest: bool) -> bool:
        return self.own.warm_start and latest

    def _source(self, state: State, client: int, update: Update) -> Source:
        """What a client sent, as stretches of its path that it moved on."""
        start: Params = state["surrogate"]
        extra = update.extra[0] if update.extra else {}
        path = [start]
        for number in range(1, self.own.segments):
            path.append({k: v + extra[_checkpoint(number, k)] for k, v in start.items()})
        path.append(add(start, unstack(update.delta, 0)))
        segments = [(a, b) for a, b in pairwise(path) if any((a[k] != b[k]).any() for k in a)]
        classes: Sequence[int] = range(self.task.num_classes)
        if self.own.skip_absent:
            classes = extra[COUNTS].nonzero().flatten().tolist()
        memory: dict[str, Any] = {}
        if self.own.warm_start:
            known = [s for s in state["sets"] if s["client"] == client]
            if known and set(known[-1]["labels"].tolist()) == set(classes):
                memory = known[-1]["memory"]
        latents, lr = memory.get("latents", {}), memory.get("lr")
        return to_device(Source(client, tuple(segments), tuple(classes), latents, lr), "cpu")


def client_set(made: SyntheticSet) -> ClientSet:
    """A distilled set with its diagnostics."""
    measures = {
        "match_loss_before": made.loss_before,
        "match_loss_after": made.loss_after,
        "match_loss_noise": made.loss_noise,
        "student_lr": made.lr,
        "uninformative": made.uninformative,
        "generate_s": made.distill_s,
    }
    memory = {"latents": made.latents, "lr": made.lr}
    return ClientSet(made.client_id, made.images, made.labels, measures, memory)


def _checkpoint(number: int, name: str) -> str:
    return f"checkpoint {number} {name}"


def _parts(batches: Batches, count: int) -> list[Batches]:
    """Local training cut into stretches of about as many steps; some are empty if there are few."""
    cuts = [len(batches.steps) * i // count for i in range(count + 1)]
    return [replace(batches, steps=batches.steps[a:b]) for a, b in pairwise(cuts)]
