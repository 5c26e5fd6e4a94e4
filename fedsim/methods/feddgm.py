"""FedDGM (Jia et al., ECCV 2024, arXiv 2312.01537): the server distils what clients have learned.

    w        surrogate: the small network that clients train     v_m   larger networks of the server
    w_k      client k's surrogate after its local training       D_k   its synthetic set

    round:   every client k trains w on its own images and sends w_k - w
             for every k:  D_k <- images on which a student makes the move w -> w_k,
                           made of a generator's latents           (`fedsim.distill`)
             D <- union of all D_k                                 (this round's alone)
             w and every v_m are trained on D, from where they were

Clients' weights are never averaged, and only w is sent down. The algorithm and its defaults are
those of the public code; where that contradicts itself is told in docs/methods/feddgm.md. Ours, as
options: w is trained on generated images first (`pretrain_epochs`), and on D from the mean of all
w_k (`average`), so that D corrects what averaging does to skewed clients.

The server needs every client's own weights: secure aggregation is out of the question, and the set
D_k is an inversion of them. `skip_absent` also tells it how many images of each class a client has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from pydantic import Field

from fedsim.config import MethodConfig
from fedsim.config.classifier import ClassifierConfig
from fedsim.distill.client_sets import Source, SyntheticSet, Work, distil
from fedsim.distill.priors.base import LoadPrior
from fedsim.distill.priors.load import image_priors, prompts_of
from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Executor, Received, State, Task, Update
from fedsim.methods.shared.client_paths import read_paths, train_paths
from fedsim.methods.shared.synthetic_sets import ClientSet, SetOptions, TrainsOnSets
from fedsim.methods.training import train_centrally
from fedsim.models.classifiers import Classifier
from fedsim.params import Params, add, norms, to_device, unstack
from fedsim.seeding import torch_rng

COUNTS = "label counts"
"""What `skip_absent` sends; no module path has a space."""

ROUND = "rounds done"
"""What `starts` are drawn from, beside the run's seed."""


class FedDGMOptions(SetOptions, extra="forbid"):
    """Which variant of the algorithm it is."""

    skip_absent: bool = False
    """Only images of classes that a client holds. It tells the server its label counts."""
    segments: int = Field(1, gt=0)
    """Checkpoints of its local training that a client sends, the end included; each stretch between
    two of them is matched. Uploads grow as many times."""
    starts: int = Field(1, gt=0)
    """Weights from which a client trains and is matched: the surrogate's, and others drawn anew
    from its initialisation every round. Both sides draw these from a seed, so that downloads stay
    as they are; uploads and the client's training grow as many times."""
    other_surrogates: tuple[ClassifierConfig, ...] = Field((), strict=False)
    """Architectures of other clients: client 0 trains `models.classifier`, client 1 the first of
    these, and so on in turns. The server trains all of them on the union."""
    warm_start: bool = False
    """Go on from a client's latents and step size of its last round."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds of plain FedAvg before the first distillation."""
    pretrain_epochs: int = Field(0, ge=0)
    """Passes over generated images, `cache.images_per_class` of each class, before round 1."""
    average: bool = False
    """Train on the union from the mean of the clients' weights, not from where w was."""


class FedDGM(TrainsOnSets):
    """Federated learning by distillation with a generative prior."""

    sections = ("distill", "cache")  # of the cache, images_per_class
    Options = FedDGMOptions

    @property
    def own(self) -> FedDGMOptions:
        """The method's options, typed."""
        assert isinstance(self.options, FedDGMOptions)
        return self.options

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        words, names = config.distill.given().get("words"), config.data.classnames
        if words and names and len(words) != len(names):
            raise ConfigError(f"distill.words has {len(words)} words for {len(names)} classes")
        options = FedDGMOptions.model_validate(config.options)
        if options.warmup_rounds >= config.train.rounds:
            raise ConfigError(
                f"options.warmup_rounds is {options.warmup_rounds} of {config.train.rounds} rounds "
                "(train.rounds): feddgm would never distil"
            )
        for name in ("warmup_rounds", "average"):
            if getattr(options, name) and options.other_surrogates:
                raise ConfigError(
                    f"options.{name} averages weights, and those of options.other_surrogates have "
                    "none in common: leave one of them out"
                )

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return bool(config.options.get("pretrain_epochs"))

    def check_task(self) -> None:
        super().check_task()
        load_prior, _ = self.priors(str(self.task.device))
        load_prior()

    def setup(self, task: Task, rng: torch.Generator) -> State:
        state, epochs, data = super().setup(task, rng), self.own.pretrain_epochs, task.synthetic
        if not epochs or data is None:  # where only shapes matter
            return state
        train = self.config.train.model_copy(update={"local_epochs": epochs})

        def trained(name: str, net: Classifier, start: Params) -> Params:
            order = torch_rng(self.config.train_seed, "pretrain", name)
            return train_centrally(start, lambda w, x: net(w, task.prepare(x)), data, train, order)

        nets = {name: trained(name, self.global_nets[name], w) for name, w in state["nets"].items()}
        return state | {"surrogate": trained("", self.net, state["surrogate"]), "nets": nets}

    def priors(self, device: str) -> tuple[LoadPrior, LoadPrior]:
        """What sets are made of, and what noise is."""
        assert self.task.image_shape is not None
        config, names = self.config, self.task.classnames
        prompts = prompts_of(
            config.distill, config.synthetic, config.models, config.data.templates, names
        )
        return image_priors(config.distill, prompts, self.task.image_shape, device)

    @cached_property
    def surrogates(self) -> dict[str, Classifier]:
        """The networks that clients train: client k the (k mod n)-th; the first has no name."""
        return {"": self.net} | {name: self.global_nets[name] for name in self.sent_networks()}

    def more_networks(self) -> tuple[ClassifierConfig, ...]:
        return self.own.other_surrogates + self.own.global_models

    def sent_networks(self) -> tuple[str, ...]:
        return tuple(self.global_nets)[: len(self.own.other_surrogates)]

    def message(self, state: State) -> Params:
        sent: Params = dict(state["surrogate"])
        for name in self.sent_networks():
            sent |= {f"{name} {k}": v for k, v in state["nets"][name].items()}
        return sent | {ROUND: torch.tensor(state["round"])} if self.own.starts > 1 else sent

    def download(self, message: Params, client: int) -> Params:
        keys = [*self._keys(self._name(client)).values(), ROUND]
        return {key: message[key] for key in keys if key in message}

    def variant(self, client: int) -> str:
        return self._name(client)

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        first = batches.client_ids[0]  # whose network its ghost trains
        names = [self._name(first if client < 0 else client) for client in batches.client_ids]
        rounds_done = int(message[ROUND]) if self.own.starts > 1 else 0
        trained: list[tuple[list[int], Params]] = []
        sent: list[Params] = [{} for _ in names]
        for name in dict.fromkeys(names):
            places = [c for c, own in enumerate(names) if own == name]
            start = {k: message[key] for k, key in self._keys(name).items()}
            starts = self._starts(name, start, rounds_done)
            net = self.surrogates[name].on_clients
            change, beside = train_paths(net, starts, batches.only(places), self.own.segments)
            trained.append((places, change))
            for place, own in zip(places, beside, strict=True):
                sent[place] = own
        if self.own.skip_absent:
            counts = batches.label_counts(self.task.num_classes).int()
            sent = [own | {COUNTS: counts[c]} for c, own in enumerate(sent)]
        if len(self.surrogates) == 1:
            ((_, change),) = trained
            return Update(change, batches.num_samples, False, extra=tuple(sent)), client_state
        # Networks of different shapes have no common axis: each client's goes beside.
        length = batches.num_samples.new_zeros(len(names), 1, device=self.task.device)
        for places, change in trained:
            length[places, 0] = norms(change).to(length)
            for i, place in enumerate(places):
                sent[place] |= unstack(change, i)
        update = Update({}, batches.num_samples, False, {"length": length}, tuple(sent))
        return update, client_state

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        if received.round <= self.own.warmup_rounds:
            return state | {"surrogate": add(state["surrogate"], received.average())}
        return super().finish_round(state, received, executor, rng)

    def client_sets(self, state: State, received: Received, executor: Executor) -> list[ClientSet]:
        sources: dict[str, list[Source]] = {name: [] for name in self.surrogates}
        for client, update in received.kept:
            source = self._source(state, client, update)
            if source.classes and source.segments:
                sources[self._name(client)].append(source)
        for alike in sources.values():  # sets of one size together: no padding
            alike.sort(key=lambda source: len(source.classes))
        size = self.config.distill.clients_at_once
        items = [
            Work(
                tuple(alike[i : i + size]),
                self.surrogates[name],
                self.config.distill,
                *self.priors(executor.device),
                self.config.train_seed,
                received.round,
                executor.device,
                self.config.engine.threads,
            )
            for name, alike in sources.items()
            for i in range(0, len(alike), size)
        ]
        made = [client_set(one) for found in executor.map(distil, items) for one in found]
        return sorted(made, key=lambda one: one.client)

    def before_training(self, state: State, received: Received) -> State:
        if not self.own.average or not received.kept:
            return state
        return state | {"surrogate": add(state["surrogate"], received.average())}

    def keeps(self, client_set: Any, latest: bool) -> bool:
        return self.own.warm_start and latest

    def _name(self, client: int) -> str:
        names = ("", *self.sent_networks())
        return names[client % len(names)]

    def _keys(self, name: str) -> dict[str, str]:
        """The tensors of a surrogate, and what they are called in the message."""
        prefix = f"{name} " if name else ""
        return {k: f"{prefix}{k}" for k in self.surrogates[name].names}

    def _starts(self, name: str, weights: Params, rounds_done: int) -> list[Params]:
        """What is trained from: the weights, and draws that clients and the server make alike."""
        net, seed = self.surrogates[name], self.config.train_seed
        rngs = [torch_rng(seed, "start", rounds_done, n) for n in range(1, self.own.starts)]
        return [weights, *(to_device(net.init(rng), self.task.device) for rng in rngs)]

    def _source(self, state: State, client: int, update: Update) -> Source:
        """What a client sent, as stretches of its path that it moved on."""
        name = self._name(client)
        weights: Params = state["nets"][name] if name else state["surrogate"]
        extra = update.extra[0]
        change = {k: extra[k] for k in weights} if not update.delta else unstack(update.delta, 0)
        starts = self._starts(name, weights, state["round"] - 1)
        segments = read_paths(starts, change, extra, self.own.segments)
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
    memory = {"latents": made.latents} | ({"lr": made.lr} if math.isfinite(made.lr) else {})
    return ClientSet(made.client_id, made.images, made.labels, measures, memory, made.crowded)
