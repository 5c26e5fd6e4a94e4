"""The contract between a federated method and the engine.

A method is explicit state in, explicit state out: no Ray, no files, no logging, no randomness but
the generators it is given. The engine decides where and in which groups clients run. A complete
method, federated averaging of class means, is this short:

    >>> class ClassMeans(Method):
    ...     def setup(self, task, rng):
    ...         return {"means": task.text_features}
    ...     def message(self, state):
    ...         return {"means": state["means"]}
    ...     def client_update(self, message, batches, client_state, rng):
    ...         total = torch.zeros(batches.num_clients, *message["means"].shape)
    ...         for b in batches.all_samples():
    ...             one_hot = F.one_hot(b.y, len(message["means"])) * b.mask[..., None]
    ...             total += one_hot.transpose(1, 2).float() @ b.x
    ...         delta = F.normalize(total, dim=-1) - message["means"]
    ...         return Update({"means": delta}, batches.num_samples), client_state
    ...     def aggregate(self, state, received):
    ...         return add(state, received.mean)
    ...     def predictor(self, state, client_state=None):
    ...         return lambda features: features @ state["means"].T
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
import torch.nn.functional as F  # noqa: F401  (used by the doctest)
from pydantic import BaseModel
from torch import Tensor

from fedsim.config import Experiment
from fedsim.methods.batches import Batch as Batch
from fedsim.methods.batches import Batches as Batches
from fedsim.models.clip import Clip
from fedsim.params import Params, Product, add, norms  # noqa: F401  (`add` is used by the doctest)

State = dict[str, Any]
"""Nested dicts of tensors, numbers and strings: what a checkpoint can hold."""

Predictor = Callable[[Tensor], Tensor]
"""Inputs `(N, ...)` -> logits `(N, num_classes)`."""

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Where server-side work of a round runs: in this process, or on the clients' actors."""

    @property
    def device(self) -> str:
        """What its functions compute on: `cpu` or `cuda`, and not always what the server has."""

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`[function(item) for item in items]`, possibly in parallel; order is kept."""


@dataclass(frozen=True)
class Labelled:
    """Inputs with labels: `(N, ...)` and `(N,)` int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """What a method may know before training: never a test sample.

    On clients `synthetic` and `public` are None: they stay on the server.
    """

    config: Experiment
    classnames: tuple[str, ...]
    embed_dim: int
    """d of the frozen encoder's features; 0 without an encoder."""
    logit_scale: float
    device: torch.device
    text_features: Tensor | None = None
    """`(num_classes, d)`, L2-normalised class embeddings; None when the data has no text."""
    synthetic: Labelled | None = None
    """The server's generated images, K per class and sorted by class: features
    `(num_classes * K, d)`, or uint8 `(num_classes * K, c, h, w)` for methods on `images`."""
    public: Labelled | None = None
    """A few public labelled images (a part of the validation split), likewise."""
    load_clip: Callable[[], Clip] | None = None
    """The frozen encoder itself, for methods that train or probe it."""
    image_shape: tuple[int, int, int] | None = None
    """`(c, h, w)` of the images that methods on `images` train on."""
    prepare: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    """Stored inputs, such as those of `synthetic` -> what a model reads: uint8 images become
    normalised floats."""

    @property
    def num_classes(self) -> int:
        return len(self.classnames)


@dataclass(frozen=True)
class Update:
    """What the clients of a group send up.

    Attributes:
        delta: Differences to the message, `(C, ...)` by name. Their bytes are what is counted.
        weight: `(C,)` float64 weights of the average, usually the number of samples.
        linear: Whether the server needs no more than the weighted sum of the deltas; only then
            can secure aggregation or a clipped, noised sum stand in for them.
        change: By how much training changed the model, `(C, ...)` by name, where that is not what
            is sent; clients are measured with it.
        extra: Per client, what else it sends, in shapes of its own; for `reduction = "keep"`.
        products: More of `delta`, as factors. Where nothing is done with single clients' deltas but
            to sum them, they are never formed; who reads `delta` asks for `formed()`.
    """

    delta: Params
    weight: Tensor
    linear: bool = True
    change: Params | None = None
    extra: tuple[Params, ...] = ()
    products: Mapping[str, Product] = field(default_factory=dict)

    def formed(self) -> Update:
        """The same update with all of `delta` as tensors."""
        formed = {name: product.formed() for name, product in self.products.items()}
        return replace(self, delta=self.delta | formed, products={}) if formed else self

    def clipped(self, max_norm: float) -> Update:
        """The same update with every client's L2 norm at most `max_norm` (> 0)."""
        update = self.formed()
        factor = (max_norm / norms(update.delta).clamp_min(1e-300)).clamp_max(1.0)
        delta = {
            k: v * factor.to(v.dtype).view(-1, *[1] * (v.dim() - 1))
            for k, v in update.delta.items()
        }
        return replace(update, delta=delta)


@dataclass(frozen=True)
class Received:
    """What the server holds after the clients of a round have answered.

    Attributes:
        mean: Weighted mean of the deltas (`reduction = "sum"`), else empty.
        kept: One `(client_id, Update with C = 1)` per client, sorted by id (`"keep"`), else empty.
        num_clients: Clients that answered.
        round: From 1.
        share: Their part of all clients' training samples.
    """

    mean: Params
    kept: tuple[tuple[int, Update], ...] = ()
    num_clients: int = 0
    round: int = 0
    share: float = 1.0

    def average(self) -> Params:
        """The weighted mean of what was kept, in the order of client ids."""
        total = sum(float(update.weight[0]) for _, update in self.kept)
        mean: Params = {}
        for _, update in self.kept:
            share = float(update.weight[0]) / total
            for name, value in update.delta.items():
                part = share * value[0].double()
                mean[name] = mean[name] + part if name in mean else part
        return {name: value.float() for name, value in mean.items()}


@dataclass(frozen=True)
class Made:
    """Images that the server holds after a round, for people to look at and to train on.

    Attributes:
        images: uint8 `(n, c, h, w)` with labels; None where sets are not images.
        clients: `(n,)` int64, the client behind each image; -1 for none.
        rows: Rows of the table `synthetic`, without run and round.
        events: Kind, message and client of what is worth telling; a client of -1 is none.
    """

    images: Labelled | None
    clients: Tensor
    rows: tuple[Mapping[str, Any], ...] = ()
    events: tuple[tuple[str, str, int], ...] = ()


class NoOptions(BaseModel, extra="forbid"):
    """For methods that need nothing beyond the shared sections."""


class Method:
    """Base of all methods. Instances hold the task and options, never changing state.

    Args:
        task: On the server with synthetic and public data, on clients without.
        options: The method's own settings, an instance of `Options`.
    """

    inputs: ClassVar[Literal["features", "pixels", "images"]] = "features"
    """What clients train on: features of the frozen encoder, images at its input size, or images at
    their own size, for which no encoder is needed."""
    frozen: ClassVar[tuple[Literal["visual", "text"], ...]] = ("visual",)
    """Which of CLIP's encoders a client needs unchanged: their bytes are downloaded once."""
    reduction: ClassVar[Literal["sum", "keep"]] = "sum"
    """May updates be summed inside an actor, or does the server need them one by one?"""
    trains: ClassVar[bool] = True
    """False for methods with nothing to train: they are evaluated once, at round 0."""
    uses_clients: ClassVar[bool] = True
    """False for methods that only work on the server."""
    averages: ClassVar[bool] = True
    """Whether the mean delta is a step of the model's parameters. Only then do server optimisers,
    class weighting and lossy compression of updates make sense."""
    trains_ghosts: ClassVar[bool] = True
    """Whether the ghost beside a client alone (`Batches`) is trained as well, on the same axis."""
    pooled: ClassVar[bool] = False
    """True for ceilings: all clients' data is one client's."""
    zero_shot: ClassVar[bool] = False
    """True for the level that sees no sample: targets of a comparison start from it."""
    personal: ClassVar[bool] = False
    """True for methods without a global model: a round's figures are means over clients' models."""
    sections: ClassVar[tuple[str, ...]] = ()
    """Optional sections of the configuration that it reads, such as `cache`."""
    Options: ClassVar[type[BaseModel]] = NoOptions
    """The method's own settings: what `options` in a study may hold."""

    def __init__(self, task: Task, options: BaseModel) -> None:
        self.task = task
        self.config = task.config
        self.options = options

    @classmethod
    def check(cls, config: Experiment) -> None:
        """Refuse, before anything is loaded, settings with which the method is not itself.

        Raises:
            ConfigError: Saying what to set instead.
        """

    @classmethod
    def num_rounds(cls, config: Experiment) -> int:
        """Rounds of a run: `train.rounds`, or fewer where the method is done sooner."""
        return config.train.rounds if cls.trains else 0

    @classmethod
    def needs_synthetic(cls, config: Experiment) -> bool:
        """Whether the server must generate its class-balanced image set."""
        return False

    @classmethod
    def needs_public(cls, config: Experiment) -> bool:
        """Whether public labelled samples are used (they count as prior knowledge)."""
        return False

    def check_task(self) -> None:
        """Raise now what `setup` would raise only when the run's turn has come.

        Raises:
            ConfigError: If options, data and encoder do not go together.
            ModelError: If the encoder is none this method can work on.
        """

    def setup(self, task: Task, rng: torch.Generator) -> State:
        """The server's state before round 1."""
        raise NotImplementedError

    def constants(self, state: State) -> Params:
        """What every client downloads once, before its first round."""
        return {}

    def message(self, state: State) -> Params:
        """What goes down the wire every round."""
        raise NotImplementedError

    def download(self, message: Params, client: int) -> Params:
        """The part of the message that this client needs, whose bytes are counted."""
        return message

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        """Local training of one group.

        Args:
            message: `constants` and `message` together, without a client axis.
            batches: The group's local data.
            client_state: Per client, what it kept from its last participation ({} at first).
            rng: Per client, a generator of its own for this round.

        Returns:
            The update over the client axis and every client's new state.
        """
        raise NotImplementedError

    def local_flops(self, message: Params, batches: Batches, one_sample: int) -> Tensor:
        """FLOPs of every client's local training `(C,)`, where that is not a sum over samples.

        Args:
            message: What the clients received.
            batches: The group's local data.
            one_sample: FLOPs of a client that has one sample, in as many epochs.
        """
        return one_sample * batches.num_samples

    def variant(self, client: int) -> str:
        """What sets a client's training apart, such as a network of its own."""
        return ""

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor | None:
        """The model over the client axis; lets the engine measure clients before and after.

        Args:
            message: What the clients received, without a client axis.
            params: The trainable part of it, one copy per client: `(C, ...)` by name.
            x: `(C, B, ...)` inputs.

        Returns:
            `(C, B, num_classes)`; None for methods without such a model.
        """
        return None

    def class_rows(self, message: Params) -> Params:
        """Which rows of which trained tensors belong to a class: name -> `(rows,)` int64 classes.

        For `server.class_weighting`; rows are those of the first axis, without a client axis.
        """
        return {}

    def aggregate(self, state: State, received: Received) -> State:
        """The server's step on what the clients sent."""
        raise NotImplementedError

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        """Server-side work after aggregation, such as distillation."""
        return state

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        """The model as a function of inputs; personal when a client's state is given."""
        raise NotImplementedError

    def made(self, state: State) -> Made | None:
        """The images that the round's server-side work has made, if it did."""
        return None

    def predictors(self, state: State) -> Mapping[str, Predictor]:
        """More models that the server holds, by the name they have in the table `evaluations`.

        They are evaluated beside the main one and choose nothing: `rounds.accuracy` is the main
        model's. The names `global` and `personal` are taken.
        """
        return {}
