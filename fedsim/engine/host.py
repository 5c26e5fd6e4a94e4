"""A host of simulated clients: trains whole groups and sums their updates.

The same code runs in-process and inside a Ray actor. Results do not depend on the host.
"""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedsim.config import Experiment
from fedsim.engine.batching import Group, make_batches
from fedsim.engine.client_rows import ClientRows
from fedsim.engine.client_states import ClientState
from fedsim.engine.flops import FlopCounter
from fedsim.engine.update_steps.base import GroupContext, Sent
from fedsim.engine.update_steps.pipeline import Pipeline
from fedsim.inputs.prepare import prepare
from fedsim.inputs.task import as_tensor, make_task
from fedsim.methods import build_method, method_class
from fedsim.methods.base import Batches, Method, Update
from fedsim.params import ExactSum, Params, to_device
from fedsim.process import reset_peak_memory, settle_process
from fedsim.seeding import torch_rng


@dataclass(frozen=True)
class Failure:
    """A client whose training raised, or whose update was refused."""

    client_id: int
    reason: str
    node: str


@dataclass(frozen=True)
class Work:
    """The work of a host in one round.

    Attributes:
        round: From 1.
        groups: Whole groups of the cohort.
        states: Per client, its state; clients without an entry keep nothing yet.
        cohort_samples: Training samples of the whole cohort, the bound of all weights.
        cohort_size: Clients of the whole cohort.
    """

    round: int
    groups: Sequence[Group]
    states: Mapping[int, ClientState]
    cohort_samples: int
    cohort_size: int

    def empty_sum(self) -> ExactSum:
        """A sum that has room for the whole cohort."""
        return ExactSum(self.cohort_samples, self.cohort_size)


@dataclass
class Done:
    """A host's answer: partial sums over all its clients, and one row for each.

    Attributes:
        total: Sum of the updates.
        beside: Sums of the other tensors that update steps sent, by step.
        kept: The updates one by one, if the server needs them so.
        rows: Rows of the table `clients`.
        states: What clients keep.
        failures: Clients that failed.
        backoffs: Groups that were halved after running out of memory. They make the run not
            bit-comparable.
        seconds: From the first group to the last.
    """

    total: ExactSum
    beside: dict[str, ExactSum] = field(default_factory=dict)
    kept: list[tuple[int, Update]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    states: dict[int, ClientState] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    backoffs: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def merge(self, other: Done) -> None:
        """Add the answer for other clients."""
        self.total.merge(other.total)
        for step, total in other.beside.items():
            if step in self.beside:
                self.beside[step].merge(total)
            else:
                self.beside[step] = total
        self.kept += other.kept
        self.rows += other.rows
        self.states |= other.states
        self.failures += other.failures
        self.backoffs += other.backoffs

    def mapped(self, function: Callable[[Any], Any]) -> Done:
        """Every tree of tensors replaced by `function` of it, such as its form on the wire."""
        for total in (self.total, *self.beside.values()):
            total.sums = function(total.sums)
        return replace(self, kept=function(self.kept), states=function(self.states))


@dataclass(frozen=True)
class _Raised:
    """An attempt's exception as text; the exception itself would keep the tensors alive."""

    reason: str
    out_of_memory: bool


class ClientHost:
    """Hosts any number of simulated clients of one experiment."""

    def __init__(self, config: Experiment, device: str = "cpu") -> None:
        settle_process(config.engine.threads)
        self.device = torch.device(device)
        self.node = socket.gethostname()
        cls = method_class(config.use)
        # Clients never hold the server's synthetic or public data.
        data = prepare(config, cls, self.device, synthetic=False)
        task = make_task(config.for_method(), data, cls, self.device, server=False)
        self.method: Method = build_method(task.config, task)
        self._train, self._seed = config.train, config.train_seed
        self._pipeline = Pipeline.of(config)
        self._keeps = self.method.reduction == "keep" or self._pipeline.one_by_one
        inputs, labels = map(as_tensor, data.local())
        prepare_inputs, place = self.method.task.prepare, self.device
        self._make_batches = partial(
            make_batches, inputs=inputs, labels=labels, prepare=prepare_inputs, device=place
        )
        self._flops = FlopCounter(self.method)
        self._rows = ClientRows(config.evaluation.client_metrics, self.node, self.device)

    def train(self, work: Work, message: Params) -> Done:
        """Train every group of `work` on what the server sent."""
        message, started = to_device(message, self.device), time.perf_counter()
        done = Done(work.empty_sum())
        for group in work.groups:
            self._train_group(group, work, message, done)
        for total in (done.total, *done.beside.values()):
            total.sums = to_device(total.sums, "cpu")
        done.seconds = time.perf_counter() - started
        return done

    def _train_group(self, group: Group, work: Work, message: Params, done: Done) -> None:
        found, ids = self._tried(group, work, message), group.client_ids
        if isinstance(found, Done):
            done.merge(found)
        elif len(ids) == 1:
            done.failures.append(Failure(ids[0], found.reason, self.node))
        elif found.out_of_memory:
            torch.cuda.empty_cache()
            half = len(ids) // 2
            done.backoffs.append(
                f"out of memory with {len(ids)} clients of group {group.position}; "
                f"trained in halves"
            )
            for part in (ids[:half], ids[half:]):
                self._train_group(group.only(part), work, message, done)
        else:
            self._isolate(group, work, message, done, found)

    def _isolate(
        self, group: Group, work: Work, message: Params, done: Done, together: _Raised
    ) -> None:
        """A group raised: find the clients that raise alone, and train the others without them."""
        alone = {c: self._tried(group.only([c]), work, message) for c in group.client_ids}
        culprits = {c: found for c, found in alone.items() if isinstance(found, _Raised)}
        if not culprits:  # they fail only together, so none can be blamed
            culprits = dict.fromkeys(group.client_ids, together)
        done.failures += [Failure(c, found.reason, self.node) for c, found in culprits.items()]
        rest = [client for client in group.client_ids if client not in culprits]
        if rest:
            self._train_group(group.only(rest), work, message, done)

    def _tried(self, group: Group, work: Work, message: Params) -> Done | _Raised:
        """The outcome of an attempt."""
        try:
            return self._attempt(group, work, message)
        except Exception as error:  # a method's own code may raise anything
            text = "".join(traceback.format_exception(error)).rstrip()
            reason = f"{type(error).__name__}: {error}\n{text}"
            return _Raised(reason, isinstance(error, torch.OutOfMemoryError))

    def _attempt(self, group: Group, work: Work, message: Params) -> Done:
        """Train a whole group at once; an exception half-way leaves nothing behind."""
        batches = self._batches(group, work.round)
        ids, real = batches.client_ids, len(group.client_ids)
        epochs = self._train.epochs(work.round)
        flops = self._flops.of(message, batches, epochs, partial(self._one_sample, group, epochs))
        reset_peak_memory(self.device)
        kept = [to_device(work.states.get(c, ClientState()), self.device) for c in ids]
        rngs = [torch_rng(self._seed, "client", work.round, client) for client in ids]
        # 1. Local training.
        started = time.perf_counter()
        update, states = self.method.client_update(
            message, batches, [state.method for state in kept], rngs
        )
        if self._looks_at_single_updates(group):
            update = update.formed()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        train_s = time.perf_counter() - started
        # 2. The update steps, in their order.
        context = GroupContext(self.method, message, batches, work.round, self._seed)
        sent = self._pipeline.on_clients(update, context, [dict(state.steps) for state in kept])
        weight = sent.update.weight.to(self.device)
        refused = self._refused(work.empty_sum(), sent, weight)
        # 3. Updates that are not refused go into the sums.
        done = Done(work.empty_sum())
        good = [c for c in range(real) if c not in refused]
        for c, reason in sorted(refused.items()):
            if c < real:
                reason = f"its update was refused: {reason}"
                done.failures.append(Failure(ids[c], reason, self.node))
        if not good:
            return done
        held = None
        if any(len(part) for part in group.held):
            held = self._batches(Group(0, group.client_ids, group.held), work.round)
        rows = self._rows.of(group, context, held, update, sent, flops, train_s)
        done.rows += [rows[c] for c in good]
        for c in good:
            steps = {step: {k: v[c] for k, v in part.items()} for step, part in sent.kept.items()}
            if state := ClientState(states[c], steps):
                done.states[ids[c]] = to_device(state, "cpu")
        all_first = good == list(range(len(good)))
        at = slice(len(good)) if all_first else good  # a slice, the usual case, makes no copy
        weight, delta = weight[at], {k: v[at] for k, v in sent.update.delta.items()}
        for step, tensors in sent.beside.items():
            done.beside[step] = work.empty_sum()
            done.beside[step].add({k: v[at] for k, v in tensors.items()}, weight)
        if self._keeps:
            done.kept += [
                (ids[c], _only(sent.update, delta, weight, c, i)) for i, c in enumerate(good)
            ]
        else:
            products = {k: v[at] for k, v in sent.update.products.items()}
            done.total.add(delta, weight, products)
        return done

    def _refused(self, total: ExactSum, sent: Sent, weight: Tensor) -> dict[int, str]:
        """Clients whose updates cannot be summed: place on the client axis -> reason."""
        refused = dict(total.refused(sent.update.delta, weight, sent.update.products))
        for tensors in sent.beside.values():
            refused = dict(total.refused(tensors, weight)) | refused
        for c, extra in enumerate(sent.update.extra):
            if wrong := [k for k, v in extra.items() if not v.isfinite().all()]:
                refused.setdefault(c, f"values of {wrong[0]!r} are NaN or infinite")
        return refused

    def _looks_at_single_updates(self, group: Group) -> bool:
        """Whether the sum and the lengths of the clients' changes are not enough."""
        return (
            self._keeps
            or bool(self._pipeline.steps)
            or self._rows.client_metrics
            or any(len(held) for held in group.held)
        )

    def _batches(self, group: Group, round: int) -> Batches:
        return self._make_batches(group, train=self._train, seed=self._seed, round=round)

    def _one_sample(self, group: Group, epochs: int, place: int) -> Batches:
        """A client with one of its samples, to count its operations."""
        one = Group(0, group.client_ids[place : place + 1], (group.indices[place][:1],))
        train = self._train.model_copy(update={"local_epochs": epochs})
        return self._make_batches(one, train=train, seed=0, round=0)


def _only(update: Update, delta: Params, weight: Tensor, client: int, place: int) -> Update:
    """One client's update, with C = 1; `place` is its row among `delta` and `weight`."""
    one = slice(place, place + 1)
    only = Update(
        {k: v[one] for k, v in delta.items()},
        weight[one],
        update.linear,
        extra=update.extra[client : client + 1],
    )
    return to_device(only, "cpu")
