"""The client actors of one run: the round loop's `ClientPool` and `Executor` on Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.cluster.client import ClientActor
from fedsim.cluster.placement import Placement
from fedsim.cluster.session import LOST, own_error
from fedsim.config import Experiment
from fedsim.errors import ExecutionError

if TYPE_CHECKING:
    import numpy as np

    from fedsim.engine.batching import Group
    from fedsim.engine.host import Done, Work
    from fedsim.engine.schedule import Paces
    from fedsim.inputs.draw_images import Job, Recipe
    from fedsim.params import Params

_MORE_LOSSES = 3
"""Losses that one round may have beyond one of every actor: a node takes all its actors with it."""

J = TypeVar("J")
T = TypeVar("T")
R = TypeVar("R")


def finished(futures: Sequence[Any], timeout: float | None = None) -> list[Any]:
    """All that have finished, once one has; none after the timeout, in seconds.

    `ray.wait` for a single future picks any of those that have finished. An actor with quick
    answers would keep the others waiting for their next job.
    """
    if not futures or not ray.wait(list(futures), timeout=timeout)[0]:
        return []
    return ray.wait(list(futures), num_returns=len(futures), timeout=0)[0]


class ActorPool:
    """Client actors in the bundles of a placement group, kept warm between runs.

    A dead actor is replaced in its bundle, and the first free actor does its work again. Sums are
    exact and groups are whole, so the results are the same bits. Ray places a bundle anew that was
    lost with its node, perhaps on a node that joins; the others go on without it.
    """

    def __init__(self, placement: Placement, group: PlacementGroup) -> None:
        self.placement, self._group = placement, group
        self.config: Experiment | None = None
        self._events: list[tuple[str, str]] = []
        self._actors = [self._start(position) for position in range(placement.num_actors)]
        self._starting = {a.where.remote(): position for position, a in enumerate(self._actors)}
        self._lost: set[int] = set()  # positions whose replacement has not started yet
        self._paces: Paces | None = None

    @property
    def num_actors(self) -> int:
        """Client actors of this run."""
        return len(self._actors)

    def train(self, work: Work, message: Params) -> Iterator[Done]:
        """Give every actor its groups, and yield partial results as they arrive.

        Raises:
            FedsimError: An actor raised it, and no client is to blame.
            ExecutionError: The deadline of a round passed, or actors keep dying.
        """
        from fedsim.cluster.transport import pack, unpack
        from fedsim.engine.schedule import Paces, assign

        config = self.config
        assert config is not None
        shared = ray.put({k: v.detach().cpu().numpy() for k, v in message.items()})
        work = replace(work, states={c: pack(state) for c, state in work.states.items()})
        paces = self._paces = self._paces or Paces(self.num_actors)
        took: dict[int, tuple[int, float]] = {}

        for future in finished(list(self._starting), timeout=0):
            with suppress(*LOST):  # `_spread` replaces it
                where = ray.get(future)
                self._welcome(self._starting.pop(future), where)
        there = [p for p in range(self.num_actors) if p not in self._lost]
        there = there or list(range(self.num_actors))
        plan = zip(there, assign(work.groups, [paces.now()[p] for p in there]), strict=True)
        own = {position: _part(work, groups) for position, groups in plan if groups}
        trained = self._spread(
            f"round {work.round}",
            # `shared` is one object for all actors; arguments are resolved on arrival.
            lambda actor, part: actor.train.remote(config, part, shared),
            own=own,
            split=lambda part: [_part(part, [group]) for group in part.groups],
            until=time.monotonic() + config.failures.deadline_s,
        )
        for position, part, done in trained:
            samples, seconds = took.get(position, (0, 0.0))
            samples += sum(group.num_samples for group in part.groups)
            took[position] = samples, seconds + done.seconds
            yield done.mapped(unpack)
        paces.learn(took)

    def draw(self, recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of a synthetic set, one at a time on every actor, as they are finished.

        Client actors hold the GPUs, and have nothing to train yet.

        Raises:
            ModelError: The generator cannot be loaded.
            ExecutionError: Actors keep dying.
        """
        try:
            drawn = self._spread(
                "drawing images",
                lambda actor, job: actor.draw.remote(self.config, recipe, job),
                jobs,
            )
            for _, job, images in drawn:
                yield job.number, images
        finally:
            for actor in self._actors:
                actor.stop_drawing.remote()  # done before whatever the actor is asked next

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`[function(item) for item in items]`, one item at a time on every actor; order is kept.

        Client actors hold the GPUs, and wait for the next round.

        Raises:
            FedsimError: The function raised it.
            ExecutionError: It raised something else, or actors keep dying.
        """
        done = self._spread(
            "server-side work",
            lambda actor, job: actor.call.remote(self.config, function, job[1]),
            enumerate(items),
        )
        found = {place: result for _, (place, _), result in done}
        return [found[place] for place in range(len(items))]

    def _spread(
        self,
        what: str,
        ask: Callable[[Any, J], Any],
        jobs: Iterable[J] = (),
        own: dict[int, J] | None = None,
        split: Callable[[J], Sequence[J]] = lambda job: (job,),
        until: float | None = None,
    ) -> Iterator[tuple[int, J, Any]]:
        """Position of the actor, job and answer, in the order in which jobs are finished.

        Args:
            what: The jobs, for messages.
            ask: Gives a job to an actor.
            jobs: Jobs for any actor.
            own: Jobs for certain actors; the others take over those of actors that start late.
            split: Cuts a job that is taken over.
            until: When to give up, on the monotonic clock; None: only when no actor works.

        Raises:
            FedsimError: A job raised it.
            ExecutionError: A job raised something else, actors keep dying, or time is up.
        """
        assert self.config is not None
        limit = self.config.failures.deadline_s
        todo, own, losses = deque(jobs), own or {}, 0
        busy: dict[Any, tuple[int, list[J]]] = {}

        def hand_out() -> None:
            """Give free actors their own job, one of what is left, or one of a late starter."""
            away = {*self._starting.values(), *(position for position, _ in busy.values())}
            for position in (p for p in range(self.num_actors) if p not in away):
                if not todo and position not in own and (late := own.keys() & away):
                    todo.extend(split(own.pop(min(late))))
                if position in own or todo:
                    job = own.pop(position) if position in own else todo.popleft()
                    busy[ask(self._actors[position], job)] = position, [job]

        while busy or todo or own:
            hand_out()
            timeout = None if busy else limit
            if until is not None:
                timeout = max(0.0, until - time.monotonic())
            answered = finished([*busy, *self._starting], timeout)
            if not answered:
                problem = "the cluster started none of the lost client actors again"
                if busy:
                    problem = f"{len(busy)} client actor(s) did not answer"
                raise ExecutionError(f"{what}: {problem} within failures.deadline_s = {limit:g} s")
            for future in answered:
                started = future in self._starting
                position, given = (self._starting.pop(future), []) if started else busy.pop(future)
                try:
                    answer = ray.get(future)
                except LOST as error:
                    losses += 1
                    self._replace(position, what, losses, error)
                    todo.extendleft(part for job in given for part in reversed(split(job)))
                    continue
                except RayTaskError as error:
                    raise own_error(error) or ExecutionError(f"{what} failed: {error}") from error
                if started:
                    self._welcome(position, answer)
                for job in given:
                    hand_out()  # before the caller has done its part
                    yield position, job, answer

    @cached_property
    def device(self) -> str:
        """The device of the actors."""
        asked = self._spread("asking where", lambda actor, _: actor.where.remote(), [None])
        ((_, _, answer),) = asked
        return str(answer["device"])

    def take_events(self) -> list[tuple[str, str]]:
        """Actors that were lost or came back since the last call."""
        events, self._events = self._events, []
        return events

    def where(self) -> list[dict[str, Any]]:
        """Process, node and accelerators of every client actor."""
        return ray.get([actor.where.remote() for actor in self._actors])

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._starting = [], {}

    def _welcome(self, position: int, where: dict[str, Any]) -> None:
        """An actor has started; the start of a replacement is an event."""
        if position in self._lost:
            self._lost.remove(position)
            text = f"client actor {position}: started again, on node {where['node_id']}"
            self._events.append(("actor_back", text))

    def _replace(self, position: int, what: str, losses: int, error: Exception) -> None:
        """Another actor for one that died, unless too many have."""
        if losses > self.num_actors + _MORE_LOSSES:
            raise ExecutionError(
                f"{what}: client actors died {losses} times; last: {error}"
            ) from error
        self._events.append(("actor_lost", f"client actor {position}: {error}"))
        ray.kill(self._actors[position])  # it may be out of reach, and still hold the bundle
        self._actors[position] = self._start(position)
        self._starting[self._actors[position].where.remote()] = position
        self._lost.add(position)
        if self._paces is not None:
            self._paces.forget(position)

    def _start(self, position: int) -> Any:
        placement = self.placement
        strategy = PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=placement.bundle_of(position)
        )
        options = {"num_cpus": placement.cpus_per_actor, "num_gpus": placement.gpus_per_actor}
        actor = ray.remote(ClientActor).options(scheduling_strategy=strategy, **options)
        return actor.remote(placement.gpus_per_actor)


def _part(work: Work, groups: Sequence[Group]) -> Work:
    """Some groups of `work`, with the states of their clients."""
    clients = {client for group in groups for client in group.client_ids}
    states = {c: state for c, state in work.states.items() if c in clients}
    return replace(work, groups=groups, states=states)
