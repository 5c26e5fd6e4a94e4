"""Steps 3 and 4 of a round: clients train, their updates stream in, failures meet a policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fedsim.config.sections import FailuresConfig
from fedsim.engine.batching import Group
from fedsim.engine.client_states import ClientState
from fedsim.engine.host import Done, Failure, Work
from fedsim.errors import ClientError, QuorumError
from fedsim.inputs.draw_images import Job, Recipe
from fedsim.methods.base import Received
from fedsim.params import ExactSum, Params

Tell = Callable[..., None]
"""`tell(kind, message, round, client_id=None, node=None)` writes an event."""


class ClientPool(Protocol):
    """Where groups of clients are trained."""

    @property
    def num_actors(self) -> int:
        """Processes that host clients; 0 in-process."""

    def train(self, work: Work, message: Params) -> Iterator[Done]:
        """Train all groups of `work`; partial results in any order."""

    def draw(self, recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, np.ndarray]]:
        """Draw images of a synthetic set before round 1 (`fedsim.inputs.draw_images.Draw`)."""

    def take_events(self) -> list[tuple[str, str]]:
        """Events of the pool since the last call, as (kind, message)."""


@dataclass
class Collected:
    """The outcome of training one round's clients.

    Attributes:
        received: What the method's `aggregate` sees.
        rows: One row of `clients` per client that succeeded.
        failed: The clients that failed.
        states: New states of the clients that keep something.
        comparable: False after a failure or a back-off changed the groups.
    """

    received: Received
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    states: dict[int, ClientState] = field(default_factory=dict)
    comparable: bool = True


def collect(
    pool: ClientPool,
    groups: Sequence[Group],
    message: Params,
    states: Mapping[int, ClientState],
    round: int,
    policy: FailuresConfig,
    tell: Tell,
) -> Collected:
    """Train a cohort, cut into groups, under the failure policy.

    All clients receive `message`. Every failure becomes an event with its traceback.

    Raises:
        ClientError: A client failed and the policy is `raise`.
        QuorumError: Fewer clients than the quorum succeeded.
    """
    cohort_samples = sum(group.num_samples for group in groups)
    cohort_size = sum(len(group.client_ids) for group in groups)
    all_done = Done(ExactSum(cohort_samples, cohort_size))
    out = Collected(Received({}))
    todo, retries = list(groups), policy.retries if policy.policy == "retry" else 0
    for attempt in range(retries + 1):
        ids = [client for group in todo for client in group.client_ids]
        held = {client: states[client] for client in ids if client in states}
        out.failed = []
        for done in pool.train(Work(round, todo, held, cohort_samples, cohort_size), message):
            all_done.merge(done)
            out.failed += done.failures
            for text in done.backoffs:
                out.comparable = False
                tell("out_of_memory", text, round)
        for kind, text in pool.take_events():
            tell(kind, text, round)
        out.failed.sort(key=lambda failure: failure.client_id)
        for f in out.failed:
            tell("client_failed", f.reason, round, f.client_id, f.node)
        if not out.failed:
            break
        out.comparable = False  # survivors were regrouped; see `Batches` on group sizes
        if policy.policy == "raise":
            first = out.failed[0]
            raise ClientError(first.client_id, round, first.node, first.reason)
        if attempt < retries:
            tell("retry", f"{len(out.failed)} clients are tried again", round)
            owner = {client: group for group in groups for client in group.client_ids}
            todo = [owner[f.client_id].only([f.client_id]) for f in out.failed]

    rows, needed = all_done.rows, math.ceil(policy.quorum * cohort_size)
    if len(rows) < needed:
        first = out.failed[0]
        raise QuorumError(
            f"round {round}: {len(rows)} of {cohort_size} clients succeeded, but "
            f"failures.quorum {policy.quorum:g} needs {needed}; first failure: client "
            f"{first.client_id} on {first.node}: {first.reason}"
        )
    out.rows, out.states = sorted(rows, key=lambda row: row["client_id"]), all_done.states
    out.received = Received(
        all_done.total.mean(),
        tuple(sorted(all_done.kept, key=lambda pair: pair[0])),
        len(rows),
        beside={step: total.mean() for step, total in all_done.beside.items()},
    )
    return out
