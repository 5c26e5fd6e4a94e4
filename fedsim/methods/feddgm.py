"""FedDGM (Jia et al., ECCV 2024, arXiv 2312.01537): the server distils the clients' training.

    w        surrogate: the small network that clients train     v_m   larger networks of the server
    w_k      client k's surrogate after its local training       D_k   its synthetic set

    round:   every client k trains w on its own images and sends w_k - w
             for every k:  D_k <- images on which a student makes the move w -> w_k,
                           made of a generator's latents           (`fedsim.distill`)
             D <- union of all D_k                                 (of this round alone)
             w and every v_m are trained on D, each from its last weights

Clients' weights are not averaged, and only w is sent down. The algorithm and its defaults are those
of the public code; docs/methods/feddgm.md lists the places where the code contradicts itself. Two
options are ours. With `pretrain_epochs`, w is trained on generated images before round 1. With
`average`, w is trained on D from the mean of all w_k, so that D corrects the effect of averaging on
skewed clients.

The server needs every client's own weights, which rules out secure aggregation. The set D_k is an
inversion of these weights. `skip_absent` also shows the server a client's number of images per
class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from pydantic import Field

from fedsim.config import MethodConfig
from fedsim.config.classifier import ClassifierConfig
from fedsim.distill.client_sets import ClientMove
from fedsim.distill.distilled_set import SyntheticSet
from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Executor, Generators, Received, State, States, Task, Update
from fedsim.methods.shared.client_paths import read_paths, train_paths
from fedsim.methods.shared.from_prior import FromPrior
from fedsim.methods.shared.namespaces import from_namespace, into_namespace, namespace_of
from fedsim.methods.shared.trains_on_sets import SetOptions, TrainsOnSets
from fedsim.methods.training import train_centrally
from fedsim.models.classifiers import Classifier
from fedsim.params import Params, add, norms, to_device, unstack
from fedsim.seeding import torch_rng

COUNTS = "client/label_counts"
"""Name of a client's label counts in an update, under `skip_absent`."""

ROUND = "server/rounds_done"
"""Name of the round's number in a message; it seeds the draws of `starts`."""


class FedDGMOptions(SetOptions, extra="forbid"):
    """Variants of the algorithm."""

    skip_absent: bool = False
    """Make images only of the classes that a client holds. Clients send their label counts."""
    segments: int = Field(1, gt=0)
    """Checkpoints of its local training that a client sends, the end included. Each stretch between
    two of them is matched. Uploads grow by this factor."""
    starts: int = Field(1, gt=0)
    """Weights from which a client trains and is matched: the surrogate's, and others that are drawn
    anew from its initialisation every round. Both sides draw them from a seed, so downloads do not
    grow. Uploads and the client's training grow by this factor."""
    other_surrogates: tuple[ClassifierConfig, ...] = Field((), strict=False)
    """Further architectures of clients: client 0 trains `models.classifier`, client 1 the first of
    these, and so on in turns. The server trains all of them on the union."""
    warm_start: bool = False
    """Start from the latents and the step size of the client's last round."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds of plain FedAvg before the first distillation."""
    pretrain_epochs: int = Field(0, ge=0)
    """Passes over generated images, `cache.images_per_class` of each class, before round 1."""
    average: bool = False
    """Train w on the union from the mean of the clients' weights instead of its last weights."""


class FedDGM(FromPrior, TrainsOnSets):
    """Federated learning by distillation with a generative prior."""

    sections = ("distill", "cache")  # of the cache, images_per_class
    Options = FedDGMOptions
    options: FedDGMOptions

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
                    f"options.{name} averages weights, and networks of options.other_surrogates "
                    "have none in common: leave one of them out"
                )

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return bool(config.options.get("pretrain_epochs"))

    def setup(self, task: Task, rng: torch.Generator) -> State:
        state, epochs, data = super().setup(task, rng), self.options.pretrain_epochs, task.synthetic
        if not epochs or data is None:  # the caller needs only shapes
            return state
        train = self.config.train.model_copy(update={"local_epochs": epochs})

        def trained(name: str, net: Classifier, start: Params) -> Params:
            order = torch_rng(self.config.train_seed, "pretrain", name)
            return train_centrally(start, lambda w, x: net(w, task.prepare(x)), data, train, order)

        nets = {name: trained(name, self.global_nets[name], w) for name, w in state["nets"].items()}
        return state | {"surrogate": trained("", self.net, state["surrogate"]), "nets": nets}

    @cached_property
    def surrogates(self) -> dict[str, Classifier]:
        """The networks that clients train: client k the (k mod n)-th. The first has no name."""
        return {"": self.net} | {name: self.global_nets[name] for name in self.sent_networks()}

    def more_networks(self) -> tuple[ClassifierConfig, ...]:
        return self.options.other_surrogates + self.options.global_models

    def sent_networks(self) -> tuple[str, ...]:
        return tuple(self.global_nets)[: len(self.options.other_surrogates)]

    def message(self, state: State) -> Params:
        sent: Params = dict(state["surrogate"])
        for name in self.sent_networks():
            sent |= into_namespace(name, state["nets"][name])
        return sent | {ROUND: torch.tensor(state["round"])} if self.options.starts > 1 else sent

    def download(self, message: Params, client: int) -> Params:
        name = self._name(client)
        return {k: v for k, v in message.items() if namespace_of(k) == name or k == ROUND}

    def variant(self, client: int) -> str:
        return self._name(client)

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        first = batches.client_ids[0]  # a ghost trains the network of its neighbour
        names = [self._name(first if client < 0 else client) for client in batches.client_ids]
        rounds_done = int(message[ROUND]) if self.options.starts > 1 else 0
        trained: list[tuple[list[int], Params]] = []
        sent: list[Params] = [{} for _ in names]
        for name in dict.fromkeys(names):
            places = [c for c, own in enumerate(names) if own == name]
            starts = self._starts(name, from_namespace(message, name), rounds_done)
            net = self.surrogates[name].on_clients
            change, beside = train_paths(net, starts, batches.only(places), self.options.segments)
            trained.append((places, change))
            for place, own in zip(places, beside, strict=True):
                sent[place] = own
        if self.options.skip_absent:
            counts = batches.label_counts(self.task.num_classes).int()
            sent = [own | {COUNTS: counts[c]} for c, own in enumerate(sent)]
        if len(self.surrogates) == 1:
            ((_, change),) = trained
            return Update(change, batches.num_samples, False, extra=tuple(sent)), client_state
        # Networks of different shapes have no common axis, so every change goes beside the update.
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
        if received.round <= self.options.warmup_rounds:
            return state | {"surrogate": add(state["surrogate"], received.average())}
        return super().finish_round(state, received, executor, rng)

    def client_sets(
        self, state: State, received: Received, executor: Executor
    ) -> list[SyntheticSet]:
        sources: dict[str, list[ClientMove]] = {name: [] for name in self.surrogates}
        for client, update in received.kept:
            source = self._source(state, client, update)
            if source.classes and source.segments:
                sources[self._name(client)].append(source)
        for alike in sources.values():  # sets of one size together need no padding
            alike.sort(key=lambda source: len(source.classes))
        moves = [(self.surrogates[name], alike) for name, alike in sources.items()]
        made = self.distilled(moves, self.config.distill, received.round, executor)
        return sorted(made, key=lambda one: one.client_id)

    def before_training(self, state: State, received: Received) -> State:
        if not self.options.average or not received.kept:
            return state
        return state | {"surrogate": add(state["surrogate"], received.average())}

    def goes_on(self) -> bool:
        return self.options.warm_start

    def _name(self, client: int) -> str:
        names = ("", *self.sent_networks())
        return names[client % len(names)]

    def _starts(self, name: str, weights: Params, rounds_done: int) -> list[Params]:
        """The starts of training: the weights, and draws that clients and the server make alike."""
        net, seed = self.surrogates[name], self.config.train_seed
        rngs = [torch_rng(seed, "start", rounds_done, n) for n in range(1, self.options.starts)]
        return [weights, *(to_device(net.init(rng), self.task.device) for rng in rngs)]

    def _source(self, state: State, client: int, update: Update) -> ClientMove:
        """A client's update as the stretches of its path on which it moved."""
        name = self._name(client)
        weights: Params = state["nets"][name] if name else state["surrogate"]
        extra = update.extra[0]
        change = {k: extra[k] for k in weights} if not update.delta else unstack(update.delta, 0)
        starts = self._starts(name, weights, state["round"] - 1)
        segments = read_paths(starts, change, extra, self.options.segments)
        classes: Sequence[int] = range(self.task.num_classes)
        if self.options.skip_absent:
            classes = extra[COUNTS].nonzero().flatten().tolist()
        memory = self.memory(state, client, classes)
        latents, lr = memory.get("latents", {}), memory.get("lr")
        return ClientMove(client, tuple(segments), tuple(classes), latents, lr)
