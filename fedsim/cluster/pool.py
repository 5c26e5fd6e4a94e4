"""The client actors of one run: what the round loop sees as its `ClientPool` and `Executor`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.cluster.client import ClientActor
from fedsim.cluster.placement import Placement
from fedsim.config import Experiment
from fedsim.errors import ExecutionError, FedsimError

if TYPE_CHECKING:
    import numpy as np

    from fedsim.engine.draw import Job, Recipe
    from fedsim.engine.host import Done, Work
    from fedsim.engine.schedule import Paces
    from fedsim.params import Params

_MAX_LOSSES_PER_ROUND = 3

J = TypeVar("J")
T = TypeVar("T")
R = TypeVar("R")


def finished(futures: Sequence[Any], timeout: float | None = None) -> list[Any]:
    """All that have finished, once one has; none of them after the timeout, in seconds.

    `ray.wait` for a single one names whom it likes of several: an actor with quick answers would
    keep the others waiting for their next job.
    """
    if not ray.wait(list(futures), timeout=timeout)[0]:
        return []
    return ray.wait(list(futures), num_returns=len(futures), timeout=0)[0]


class ActorPool:
    """Client actors in the bundles of a placement group, kept warm between runs.

    A dead actor is replaced in its bundle and its groups are trained again; since sums are exact
    and groups whole, the results are the same bits.

    Args:
        placement: How many actors, and what each holds.
        group: The placement group whose bundles they live in.
    """

    def __init__(self, placement: Placement, group: PlacementGroup) -> None:
        self.placement, self._group = placement, group
        self.config: Experiment | None = None
        self._events: list[tuple[str, str]] = []
        self._actors = [self._start(position) for position in range(placement.num_actors)]
        self._paces: Paces | None = None

    @property
    def num_actors(self) -> int:
        """Client actors of this run."""
        return len(self._actors)

    def train(self, work: Work, message: Params) -> Iterator[Done]:
        """Give every actor its groups, and yield partial results as they arrive.

        Raises:
            ExecutionError: The deadline of a round passed, or actors keep dying.
        """
        from fedsim.cluster.transport import pack, unpack
        from fedsim.engine.schedule import Paces, assign

        config = self.config
        assert config is not None
        shared = ray.put({k: v.detach().cpu().numpy() for k, v in message.items()})
        pending: dict[Any, tuple[int, Work]] = {}
        paces = self._paces = self._paces or Paces(self.num_actors)
        took: dict[int, tuple[int, float]] = {}

        def submit(position: int, part: Work) -> None:
            # `shared` is one object for all actors; arguments are resolved on arrival.
            future = self._actors[position].train.remote(config, part, shared)
            pending[future] = position, part

        for position, groups in enumerate(assign(work.groups, paces.now())):
            if groups:
                clients = {client for group in groups for client in group.client_ids}
                states = {c: pack(state) for c, state in work.states.items() if c in clients}
                submit(position, replace(work, groups=groups, states=states))
        deadline, losses = time.monotonic() + config.failures.deadline_s, 0
        while pending:
            left = deadline - time.monotonic()
            ready, _ = ray.wait(list(pending), timeout=max(0.0, left))
            if not ready:
                raise ExecutionError(
                    f"round {work.round}: {len(pending)} client actor(s) did not answer within "
                    f"failures.deadline_s = {config.failures.deadline_s:g} s"
                )
            position, part = pending.pop(ready[0])
            try:
                done: Done = ray.get(ready[0])
            except RayActorError as error:
                losses += 1
                self._replace(position, f"round {work.round}", losses, error)
                paces.forget(position)
                submit(position, part)
                continue
            took[position] = sum(group.num_samples for group in part.groups), done.seconds
            done.total.sums = unpack(done.total.sums)
            yield replace(done, kept=unpack(done.kept), states=unpack(done.states))
        paces.learn(took)

    def draw(self, recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of a synthetic set, one at a time on every actor, as they are finished.

        Clients have nothing to train yet, and their actors hold the GPUs.

        Raises:
            ModelError: The generator cannot be loaded.
            ExecutionError: Actors keep dying.
        """
        try:
            asked = partial(_draw, self.config, recipe)
            for job, images in self._spread("drawing images", asked, jobs):
                yield job.number, images
        finally:
            for actor in self._actors:
                actor.stop_drawing.remote()  # done before whatever the actor is asked next

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`[function(item) for item in items]`, one item at a time on every actor; order is kept.

        Between training and the next round clients wait, and their actors hold the GPUs.

        Raises:
            FedsimError: What the function raised, if it is one.
            ExecutionError: It raised something else, or actors keep dying.
        """
        found: dict[int, R] = {}
        asked = partial(_call, self.config, function)
        for (place, _), result in self._spread("server-side work", asked, list(enumerate(items))):
            found[place] = result
        return [found[place] for place in range(len(items))]

    def _spread(
        self, what: str, ask: Callable[[Any, J], Any], jobs: Sequence[J]
    ) -> Iterator[tuple[J, Any]]:
        """Every job with its answer, in the order in which they are finished."""
        todo, losses = deque(jobs), 0
        pending: dict[Any, tuple[int, J]] = {}

        def submit(position: int) -> None:
            if todo:
                job = todo.popleft()
                pending[ask(self._actors[position], job)] = position, job

        try:
            for position in range(self.num_actors):
                submit(position)
            while pending:
                for future in finished(list(pending)):
                    position, job = pending.pop(future)
                    try:
                        answer = ray.get(future)
                    except RayActorError as error:
                        losses += 1
                        self._replace(position, what, losses, error)
                        todo.appendleft(job)
                        submit(position)
                        continue
                    submit(position)
                    yield job, answer
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, FedsimError) else None
            raise cause or ExecutionError(f"{what} failed: {error}") from error

    @cached_property
    def device(self) -> str:
        """What the actors compute on."""
        found = [answer["device"] for _, answer in self._spread("asking where", _where, [None])]
        return str(found[0])

    def take_events(self) -> list[tuple[str, str]]:
        """Lost actors since last asked."""
        events, self._events = self._events, []
        return events

    def where(self) -> list[dict[str, Any]]:
        """Process, node and accelerators of every client actor."""
        return ray.get([actor.where.remote() for actor in self._actors])

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _replace(self, position: int, what: str, losses: int, error: RayActorError) -> None:
        """Another actor for one that died, unless too many have."""
        if losses > _MAX_LOSSES_PER_ROUND:
            raise ExecutionError(
                f"{what}: client actors died {losses} times; last: {error}"
            ) from error
        self._events.append(("actor_lost", f"client actor {position}: {error}"))
        self._actors[position] = self._start(position)

    def _start(self, position: int) -> Any:
        placement = self.placement
        strategy = PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=placement.bundle_of(position)
        )
        options = {"num_cpus": placement.cpus_per_actor, "num_gpus": placement.gpus_per_actor}
        actor = ray.remote(ClientActor).options(scheduling_strategy=strategy, **options)
        return actor.remote(placement.gpus_per_actor)


def _where(actor: Any, job: None) -> Any:
    return actor.where.remote()


def _draw(config: Experiment | None, recipe: Recipe, actor: Any, job: Job) -> Any:
    return actor.draw.remote(config, recipe, job)


def _call(
    config: Experiment | None, function: Callable[[T], Any], actor: Any, job: tuple[int, T]
) -> Any:
    return actor.call.remote(config, function, job[1])
