"""Methods that misbehave or are unusual on purpose; tests name them as `toys.py:CLASS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from fedsim.methods.base import Batches, Method, Received, State, Update
from fedsim.methods.fedavg_head import FedAvgHead
from fedsim.params import Params


class FaultyOptions(BaseModel, extra="forbid"):
    clients: list[int] = []
    how: Literal["raise", "together", "nan", "inf", "weight", "memory", "states"] = "raise"
    at_most: int = 1
    """`memory`: so many clients fit at once."""
    once: str | None = None
    """A file that remembers the first failure: later attempts succeed."""


class Faulty(FedAvgHead):
    """Federated averaging in which some clients fail."""

    Options = FaultyOptions

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        options = self.options
        assert isinstance(options, FaultyOptions)
        real = [c for c in batches.client_ids if c >= 0]
        hit = [c for c in real if c in options.clients]
        if hit and options.once and not Path(options.once).exists():
            if len(real) == 1:  # not while the engine looks for the culprit in a group
                Path(options.once).touch()
            raise ConnectionError(f"client {hit[0]} stumbled")
        if hit and options.once:
            hit = []
        if options.how == "raise" and hit:
            raise ValueError(f"client {hit[0]} holds bad data")
        if options.how == "together" and len(real) > 1:
            raise RuntimeError("only alone, please")
        if options.how == "memory" and (len(real) > options.at_most or hit):
            raise torch.OutOfMemoryError(f"{len(real)} clients do not fit")
        update, states = super().client_update(message, batches, client_state, rng)
        for c in (batches.client_ids.index(client) for client in hit):
            if options.how == "nan":
                update.delta["head"][c, 0, 0] = torch.nan
            if options.how == "inf":
                update.delta["head"][c, 0, 0] = torch.inf
            if options.how == "weight":
                update.weight[c] = -1.0
        return update, [] if options.how == "states" else states


class Stateful(FedAvgHead):
    """Every client remembers how often it took part and its last change, which it adds again."""

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        update, _ = super().client_update(message, batches, [{}] * batches.num_clients, rng)
        noise = torch.stack([torch.rand(1, generator=g) for g in rng])[..., None]
        past = torch.stack([s.get("last", torch.zeros_like(message["head"])) for s in client_state])
        delta = {"head": update.delta["head"] + 0.3 * past + 1e-3 * noise}
        states: list[dict[str, Any]] = [
            {
                "times": s.get("times", 0) + 1,
                "last": delta["head"][c].clone(),
                "nested": {"name": f"client {client}", "list": [1.5, None, True]},
            }
            for c, (client, s) in enumerate(zip(batches.client_ids, client_state, strict=True))
        ]
        return Update(delta, update.weight), states


class Kept(FedAvgHead):
    """The server needs every update; what it does depends on their order."""

    reduction = "keep"

    def setup(self, task: Any, rng: torch.Generator) -> State:
        return super().setup(task, rng) | {"order": []}

    def aggregate(self, state: State, received: Received) -> State:
        assert received.mean == {}
        assert received.num_clients == len(received.kept)
        head = state["head"]
        for _, update in received.kept:
            assert update.delta["head"].shape == (1, *head.shape)
            assert update.weight.shape == (1,)
            head = head + 0.5 * (update.delta["head"][0] - 0.1 * (head - state["head"]))
        return {"head": head, "order": [client for client, _ in received.kept]}


class Drawing(FedAvgHead):
    """Adds what the clients' and the server's generators give, and counts what it did."""

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        update, states = super().client_update(message, batches, client_state, rng)
        draws = torch.stack([torch.randn(message["head"].shape, generator=g) for g in rng])
        return Update({"head": update.delta["head"] + 0.01 * draws}, update.weight), states

    def finish_round(self, state: State, received: Received, executor: Any, rng: Any) -> State:
        doubled = executor.map(float, [1, 2, 3])
        assert doubled == [1.0, 2.0, 3.0]
        return state | {"head": state["head"] + 0.01 * torch.randn(4, 8, generator=rng)}


class Inspecting(FedAvgHead):
    """Raises on clients that can see what only the server may."""

    @classmethod
    def needs_public(cls, config: Any) -> bool:
        return True

    def setup(self, task: Any, rng: torch.Generator) -> State:
        assert task.public is not None, "the server has what was asked for"
        return super().setup(task, rng)

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        if self.task.synthetic is not None or self.task.public is not None:
            raise PermissionError("a client sees the server's data")
        return super().client_update(message, batches, client_state, rng)


class NoLogits(FedAvgHead):
    """No model over the client axis: clients are not measured."""

    def client_logits(self, message: Params, params: Params, x: torch.Tensor) -> None:
        return None

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        head = message["head"]
        step = torch.arange(batches.num_clients)[:, None, None] * torch.ones_like(head)
        return Update({"head": 1e-3 * step}, batches.num_samples), client_state


__all__ = [
    "Drawing",
    "Faulty",
    "Inspecting",
    "Kept",
    "Method",
    "NoLogits",
    "Stateful",
]
