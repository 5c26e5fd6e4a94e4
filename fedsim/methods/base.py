"""The contract between a federated method and the engine.

A method maps explicit state to explicit state. It uses no Ray, no files, no logging, and draws only
from the generators that it is given. The engine decides where clients run, and in which groups. The
following is a complete method, federated averaging of class means:

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

from fedsim.config import MethodConfig
from fedsim.methods.batches import Batch as Batch
from fedsim.methods.batches import Batches as Batches
from fedsim.models.clip import Clip
from fedsim.params import Params, Product, add, norms, per_client  # noqa: F401  (`add` is used by the doctest)

State = dict[str, Any]
"""Nested dicts of tensors, numbers and strings, which a checkpoint can hold."""

States = Sequence[State]
"""Per client of a group, the state that it kept from its last participation, {} at first."""

Generators = Sequence[torch.Generator]
"""Per client of a group, a CPU generator of its own for this round."""

Predictor = Callable[[Tensor], Tensor]
"""Inputs `(N, ...)` -> logits `(N, num_classes)`."""

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Runs a round's server-side work, in this process or on the clients' actors."""

    @property
    def device(self) -> str:
        """The device that functions compute on, `cpu` or `cuda`; the server's may be another."""

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
    """The knowledge of a method before training. It holds no test sample.

    `synthetic` and `public` stay on the server; a client's task has None there.
    """

    config: MethodConfig
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
    """A few public labelled images, a part of the validation split, in the same form."""
    load_clip: Callable[[], Clip] | None = None
    """Loads the frozen encoder, for methods that train or probe it; None without an encoder."""
    image_shape: tuple[int, int, int] | None = None
    """`(c, h, w)` of the images that methods on `images` train on."""
    prepare: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    """Stored inputs, such as those of `synthetic` -> model inputs: uint8 images become normalised
    floats."""

    @property
    def num_classes(self) -> int:
        return len(self.classnames)


@dataclass(frozen=True)
class Update:
    """The tensors that the clients of a group send up.

    Attributes:
        delta: Differences to the message, `(C, ...)` by name. Their bytes are counted.
        weight: `(C,)` float64 weights of the average, usually the numbers of samples.
        linear: Whether the weighted sum of the deltas is all that the server needs. Only then can
            secure aggregation or a clipped, noised sum replace them.
        change: The change of the model by training, `(C, ...)` by name, where `delta` is something
            else. Clients are measured with it.
        extra: Per client, further tensors in shapes of its own; for `reduction = "keep"`.
        products: Further entries of `delta`, as factors. They are never formed where single deltas
            are only summed. Code that reads `delta` calls `formed()` first.
    """

    delta: Params
    weight: Tensor
    linear: bool = True
    change: Params | None = None
    extra: tuple[Params, ...] = ()
    products: Mapping[str, Product] = field(default_factory=dict)

    def formed(self) -> Update:
        """The same update with every entry of `delta` as a tensor."""
        formed = {name: product.formed() for name, product in self.products.items()}
        return replace(self, delta=self.delta | formed, products={}) if formed else self

    def clipped(self, max_norm: float) -> Update:
        """The same update with every client's L2 norm at most `max_norm` (> 0)."""
        update = self.formed()
        if not update.delta:
            return update
        factor = (max_norm / norms(update.delta).clamp_min(1e-300)).clamp_max(1.0)
        delta = {k: v * per_client(factor.to(v.dtype), v) for k, v in update.delta.items()}
        return replace(update, delta=delta)


@dataclass(frozen=True)
class Received:
    """The tensors that the server holds after the clients of a round have answered.

    Attributes:
        mean: Weighted mean of the deltas under `reduction = "sum"`, else empty. It is also empty if
            every client failed. Where the method `averages`, the server's optimiser has made its
            step of it.
        kept: One `(client_id, Update with C = 1)` per client, sorted by id, under
            `reduction = "keep"`, else empty.
        num_clients: Number of clients that answered.
        round: The round, from 1.
        share: These clients' part of all clients' training samples.
        beside: Weighted means of what update steps sent beside the deltas, by step and name.
    """

    mean: Params
    kept: tuple[tuple[int, Update], ...] = ()
    num_clients: int = 0
    round: int = 0
    share: float = 1.0
    beside: Mapping[str, Params] = field(default_factory=dict)

    def average(self) -> Params:
        """The weighted mean of the kept deltas, summed in the order of client ids."""
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
        images: uint8 `(n, c, h, w)` with labels; None for sets of something other than images.
        clients: `(n,)` int64, the client behind each image; -1 for none.
        rows: Rows of the table `synthetic`, without run and round.
        events: Kind, message and client of every event to report; a client of -1 is none.
    """

    images: Labelled | None
    clients: Tensor
    rows: tuple[Mapping[str, Any], ...] = ()
    events: tuple[tuple[str, str, int], ...] = ()


class NoOptions(BaseModel, extra="forbid"):
    """No options, for methods that read only the shared sections."""


class Method:
    """Base of all methods. Instances hold the task and the options, and no state that changes.

    Args:
        task: The server's task has synthetic and public data, a client's has none.
        options: The method's own settings, an instance of `Options`.
    """

    inputs: ClassVar[Literal["features", "pixels", "images"]] = "features"
    """The inputs that clients train on: features of the frozen encoder, images at its input size
    (`pixels`), or images at their own size, which need no encoder."""
    frozen: ClassVar[tuple[Literal["visual", "text"], ...]] = ("visual",)
    """CLIP's encoders that a client needs unchanged. It downloads their bytes once."""
    reduction: ClassVar[Literal["sum", "keep"]] = "sum"
    """`sum`: an actor may sum its clients' updates. `keep`: the server needs every single one."""
    trains: ClassVar[bool] = True
    """False for methods with nothing to train. They are evaluated once, at round 0."""
    uses_clients: ClassVar[bool] = True
    """False for methods that work on the server alone."""
    averages: ClassVar[bool] = True
    """Whether the mean delta is a step of the model's parameters. Server optimisers, class
    weighting and lossy compression of updates need such a step."""
    trains_ghosts: ClassVar[bool] = True
    """Whether the ghost beside a client alone (see `Batches`) is trained on the same axis."""
    pooled: ClassVar[bool] = False
    """True for ceilings: one client holds all clients' data."""
    zero_shot: ClassVar[bool] = False
    """True for the level that sees no sample: targets of a comparison start from it."""
    personal: ClassVar[bool] = False
    """True for methods without a global model. A round's figures are means over clients' models."""
    sections: ClassVar[tuple[str, ...]] = ()
    """Optional sections of the configuration that the method reads, such as `cache`."""
    Options: ClassVar[type[BaseModel]] = NoOptions
    """The method's own settings, which a study gives as `options`."""

    def __init__(self, task: Task, options: BaseModel) -> None:
        self.task = task
        self.config = task.config
        self.options = options

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        """Refuse settings that contradict the method, before anything is loaded.

        Raises:
            ConfigError: It says what to set instead.
        """

    @classmethod
    def num_rounds(cls, config: MethodConfig) -> int:
        """Rounds of a run: `train.rounds`, or fewer if the method ends sooner."""
        return config.train.rounds if cls.trains else 0

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        """Whether the server generates its class-balanced image set first."""
        return False

    @classmethod
    def needs_public(cls, config: MethodConfig) -> bool:
        """Whether the method uses public labelled samples, which count as prior knowledge."""
        return False

    def check_task(self) -> None:
        """Raise the errors of `setup` before the study's first run starts.

        Raises:
            ConfigError: If options, data and encoder do not go together.
            ModelError: If the method cannot work on the encoder.
        """

    def setup(self, task: Task, rng: torch.Generator) -> State:
        """The server's state before round 1."""
        raise NotImplementedError

    def restored(self, state: State) -> State:
        """A checkpoint's state in today's form, where an earlier version wrote another one."""
        return state

    def constants(self, state: State) -> Params:
        """The tensors that every client downloads once, before its first round."""
        return {}

    def message(self, state: State) -> Params:
        """The tensors that the server sends every round."""
        raise NotImplementedError

    def download(self, message: Params, client: int) -> Params:
        """The part of the message that this client needs. Its bytes are counted."""
        return message

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        """Local training of one group.

        Args:
            message: `constants` and `message` together, without a client axis.
            batches: The group's local data.
            client_state: Every client's state.
            rng: Every client's generator.

        Returns:
            The update over the client axis, and every client's new state.
        """
        raise NotImplementedError

    def local_flops(self, message: Params, batches: Batches, one_sample: int) -> Tensor:
        """FLOPs of every client's local training, `(C,)`; by default proportional to samples.

        Args:
            message: The tensors that the clients received.
            batches: The group's local data.
            one_sample: FLOPs of a client with one sample, over all local epochs.
        """
        return one_sample * batches.num_samples

    def variant(self, client: int) -> str:
        """A name for the kind of a client's training, such as its network; "" if all are alike."""
        return ""

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor | None:
        """The model over the client axis. The engine measures clients with it before and after.

        Args:
            message: The tensors that the clients received, without a client axis.
            params: The trainable part of the message, one copy per client: `(C, ...)` by name.
            x: `(C, B, ...)` inputs.

        Returns:
            `(C, B, num_classes)`; None for methods without such a model.
        """
        return None

    def class_rows(self, message: Params) -> Params:
        """The class of every row of a trained tensor, `(rows,)` int64 by the tensor's name.

        `server.class_weighting` reads it. Rows are counted on the first axis, without a client
        axis. Tensors whose rows belong to no class are left out.
        """
        return {}

    def aggregate(self, state: State, received: Received) -> State:
        """The server's step on the clients' updates."""
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
        """The images that the round's server-side work has made, or None."""
        return None

    def predictors(self, state: State) -> Mapping[str, Predictor]:
        """Further models of the server, by their name in the table `evaluations`.

        They are evaluated beside the main model and choose nothing: `rounds.accuracy` is that of
        the main model. The names `global` and `personal` are taken.
        """
        return {}
