"""Ours: CacheFL and FedDGM joined. Clients fine-tune caches, the server averages and distils.

    W (M, d)   keys, M = N*K, of the global cache          W_k   client k's after local training
    V (M, N)   values, fixed                               D_k = W_k - W
    s_k (n, d) synthetic features of length 1, labels y    CE    cross-entropy of the cache model

    round:  clients fine-tune the keys and send D_k                                     (CacheFL)
            W' <- W + sum_k (n_k / n) D_k
            s_k <- argmin |student(s_k) - W_k|^2 / |W - W_k|^2,  for every k             (FedDGM)
                   student(s): S gradient steps on CE(s, y) from W
            W  <- E gradient steps on sum_k (n_k / n) CE(s_k, y_k), from W'

Why it could help: where labels are skewed, a client pushes the keys of classes that it does not
hold away from its features. The average keeps this push, and training on all clients' features
together undoes it. A local SGD step moves key j, of class c_j, by

    lr alpha beta / B  sum_i a_ij (1[y_i = c_j] - p_i,c_j) f_i,      a_ij = exp(-beta (1 - f_i W_j))

so moves lie in the span of the client's features. The moves of a class that it holds point to its
images of that class. `start: moves` begins at these directions; `distill.latent_steps: 0` uses them
unchanged. A class counts as held if its keys moved towards themselves.

`space: features` distils unit vectors; `space: generator` distils latents of `distill.prior`, which
are decoded and encoded. Three options are the null hypotheses to beat: `data: initial` (the same
server steps on the first cache's own keys), `data: mean` (one set from the average move, which
secure aggregation permits) and `distill.latent_steps: 0` (directions read off the moves).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.config.sections import TrainConfig
from fedsim.distill.client_sets import ClientMove
from fedsim.distill.distilled_set import NOBODY, SyntheticSet
from fedsim.distill.dual_keys import CacheModel
from fedsim.distill.priors.base import LoadPrior
from fedsim.distill.priors.features import EncodedImages, encoded_priors, feature_priors
from fedsim.errors import ConfigError
from fedsim.methods.base import (
    Batches,
    Executor,
    Generators,
    Made,
    Received,
    State,
    States,
    Task,
    Update,
)
from fedsim.methods.cachefl import CacheFL
from fedsim.methods.shared.from_prior import FromPrior
from fedsim.methods.shared.trains_on_sets import Event, events_of, report
from fedsim.methods.training import Optimizer
from fedsim.models.image_arrays import from_unit_range
from fedsim.params import Params, to_device


class CacheDGMOptions(BaseModel, extra="forbid"):
    """The data on which the server trains the averaged cache, and the training's length."""

    data: Literal["clients", "mean", "initial"] = "clients"
    """A set from each client's move, one set from their average, or the keys that the cache began
    with, which needs no distillation."""
    space: Literal["features", "generator"] = "features"
    """Distil features themselves, or latents of `distill.prior` behind the encoder."""
    start: Literal["moves", "keys"] = "moves"
    """`features`: start at directions read off the moves, or at the keys."""
    server_steps: int = Field(20, ge=0)
    """E; 0 is CacheFL."""
    server_lr: float = Field(0.01, gt=0)
    replay: int = Field(0, ge=0)
    """Number of earlier rounds whose sets stay in the union."""


class CacheDGM(FromPrior, CacheFL):
    """Averaged caches, trained on sets that are distilled from clients' moves."""

    reduction = "keep"
    averages = False
    sections = ("cache", "distill")
    Options = CacheDGMOptions
    options: CacheDGMOptions

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        super().check(config)
        random, tuned = config.cache.init == "random", config.distill.given().get("generator_lr")
        refused = {
            "reads clients' moves as sums of gradients: set train.optimizer to sgd": (
                config.train.optimizer != "sgd"
            ),
            "distils moves of keys alone: set cache.trainable to keys": (
                config.cache.trainable != "keys"
            ),
            "distils keys, one tensor: leave distill.distance at squared": (
                config.distill.distance != "squared"
            ),
            "finds the classes that a client holds from moves along keys, which have to lie among "
            "images' features; random keys do not: set cache.init to something else": random,
            "distils through the pretrained generator: leave out distill.generator_lr": tuned,
        }
        for reason, applies in refused.items():
            if applies:
                raise ConfigError(f"cachefl_dgm {reason}")
        if config.options.get("space") == "generator" and config.models.clip is None:
            raise ConfigError("options.space: generator needs models.clip and models.generator")

    def setup(self, task: Task, rng: torch.Generator) -> State:
        state = super().setup(task, rng)
        return state | {"initial": state["keys"], "sets": [], "events": []}

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        update, states = super().client_update(message, batches, client_state, rng)
        return replace(update, linear=self.options.data != "clients"), states

    def aggregate(self, state: State, received: Received) -> State:
        """W', with the W that clients received beside it."""
        state = state | {"round": received.round, "events": []}
        if not received.kept:  # every client failed
            return state
        return state | {"sent": state["keys"], "keys": state["keys"] + received.average()["keys"]}

    def finish_round(
        self, state: State, received: Received, executor: Executor, rng: torch.Generator
    ) -> State:
        if not received.kept:
            return state
        sets = [s for s in state["sets"] if s["round"] >= received.round - self.options.replay]
        if self.options.data == "initial":
            first = F.normalize(state["initial"], dim=-1)
            sets = [{"round": 0, "features": first, "labels": state["labels"], "weight": 1.0}]
        else:
            made, events = self._distilled(state, received, executor)
            sets, state = sets + made, state | {"events": events}
        state = state | {"sets": sets, "keys": self._train(state, sets)}
        del state["sent"]
        return state

    def _distilled(
        self, state: State, received: Received, executor: Executor
    ) -> tuple[list[dict[str, Any]], list[Event]]:
        """A set for each client's move or for their average, and the events to report."""
        moves = {c: (u.delta["keys"][0], float(u.weight[0])) for c, u in received.kept}
        if self.options.data == "mean":
            moves = {NOBODY: (received.average()["keys"], sum(w for _, w in moves.values()))}
        sources = {c: self._source(state, c, move) for c, (move, _) in moves.items()}
        held = [source for source in sources.values() if source.classes]
        settings = self.config.distill.model_copy(update={"augment": ()})  # which is for images
        student = to_device(self._student(state), "cpu")
        made = self.distilled([(student, held)], settings, received.round, executor)
        sets = [self._entry(s, moves[s.client_id][1], received.round) for s in made if s.finite]
        return sets, events_of(made)

    def _source(self, state: State, client: int, move: Tensor) -> ClientMove:
        """A client's move, which the student has to make, and the start of its set."""
        sent, labels = state["sent"], state["labels"]
        classes = held_classes(sent, move, labels)
        latents: Params = {}
        if self.options.space == "features":
            rows = move if self.options.start == "moves" else sent
            per_class = self.config.distill.images_per_class
            first = [directions(rows[labels == c], per_class) for c in classes]
            latents = {"latent": torch.cat(first)} if first else {}
        segment = ({"keys": sent}, {"keys": sent + move})
        return ClientMove(client, (segment,), tuple(classes), latents)

    def priors(self, device: str) -> tuple[LoadPrior, LoadPrior]:
        if self.options.space == "features":
            return feature_priors(self.task.embed_dim, device)
        clip = self.config.models.clip
        assert clip is not None
        return encoded_priors(self.config.distill, self.prompts, clip, device)

    def check_task(self) -> None:
        if self.options.data != "initial":
            super().check_task()

    def _entry(self, made: SyntheticSet, weight: float, round: int) -> dict[str, Any]:
        """A set as the state keeps it: features, and the images behind them if there are any."""
        images = {}
        if self.options.space == "generator":
            prior = self.priors(str(self.task.device))[0]()
            assert isinstance(prior, EncodedImages)
            images["images"] = from_unit_range(prior.images(made.latents)).cpu()
        return images | {
            "round": round,
            "client": made.client_id,
            "features": made.images,
            "labels": made.labels,
            "weight": weight,
            "row": made.row(),
        }

    def made(self, state: State) -> Made | None:
        return report([s for s in state["sets"] if s["round"] == state["round"]], state["events"])

    def _train(self, state: State, sets: Sequence[dict[str, Any]]) -> Tensor:
        """The averaged keys after E steps on the union, in which every client has its weight."""
        keys: Tensor = state["keys"]
        if not sets or not self.options.server_steps:
            return keys
        x, y = (torch.cat([s[k] for s in sets]).to(keys.device) for k in ("features", "labels"))
        weight = torch.cat(
            [torch.full((len(s["labels"]),), s["weight"] / len(s["labels"])) for s in sets]
        )
        weight = (weight / weight.sum()).to(keys)
        student, params = self._student(state), {"keys": keys.clone().requires_grad_()}
        step = TrainConfig(optimizer="sgd", lr=self.options.server_lr, momentum=0.9)
        optimizer = Optimizer(list(params.values()), step)
        for _ in range(self.options.server_steps):
            loss = F.cross_entropy(student(params, x), y, reduction="none")
            optimizer.step(loss @ weight)
        return params["keys"].detach()

    def _student(self, state: State) -> CacheModel:
        cache = self.config.cache
        return CacheModel(
            state["text"],
            state["values"],
            cache.residual_ratio,
            cache.sharpness,
            self.task.logit_scale,
        )


def held_classes(keys: Tensor, move: Tensor, labels: Tensor) -> list[int]:
    """The classes that a client has images of: those whose keys `(M, d)` moved along themselves.

    Features of CLIP lie in a cone. A sum of them with positive weights points along any key, a sum
    with negative weights away from it. Images that the model is sure of leave no trace.
    """
    found = []
    for label in labels.unique().tolist():
        mine = labels == label
        if move[mine].sum(0) @ keys[mine].sum(0) > 0:
            found.append(int(label))
    return found


def directions(rows: Tensor, count: int) -> Tensor:
    """`count` unit vectors from rows `(K, d)`: sums of every count-th row, or the rows in turn.

    >>> directions(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), 1)
    tensor([[0.5547, 0.8321]])
    """
    k = len(rows)
    parts = [rows[i::count].sum(0) if i < k else rows[i % k] for i in range(count)]
    return F.normalize(torch.stack(parts), dim=-1)
