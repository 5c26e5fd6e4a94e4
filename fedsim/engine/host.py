"""A host of simulated clients: trains whole groups and sums their updates.

The same code runs in-process and inside a Ray actor; a result never depends on which host
computed it.
"""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from fedsim.config import Experiment
from fedsim.engine.batching import Group, make_batches, num_steps
from fedsim.engine.compression import RESIDUAL, compress
from fedsim.engine.flops import FlopCounter
from fedsim.engine.server_step import SHARE, weigh_by_class
from fedsim.inputs.prepare import prepare
from fedsim.inputs.task import as_tensor, make_task
from fedsim.methods import build_method, method_class
from fedsim.methods.base import Batches, Method, State, Update
from fedsim.methods.training import cross_entropy
from fedsim.params import ExactSum, Params, add, norms, num_bytes, stack, to_device, unstack
from fedsim.process import peak_memory, reset_peak_memory, settle_process
from fedsim.seeding import torch_rng


@dataclass(frozen=True)
class Failure:
    """A client whose training raised, or whose update was refused."""

    client_id: int
    reason: str
    node: str


@dataclass(frozen=True)
class Work:
    """What a host is given for one round.

    Attributes:
        round: From 1.
        groups: Whole groups of the cohort.
        states: Per client, what it kept; clients without an entry keep nothing yet.
        cohort_samples: Training samples of the whole cohort, the bound of all weights.
        cohort_size: Clients of the whole cohort.
    """

    round: int
    groups: Sequence[Group]
    states: Mapping[int, State]
    cohort_samples: int
    cohort_size: int


@dataclass
class Done:
    """What a host gives back: one partial sum for all its clients, and one row for each."""

    total: ExactSum
    kept: list[tuple[int, Update]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    backoffs: list[str] = field(default_factory=list)
    """What was changed after running out of memory; makes the run not bit-comparable."""
    seconds: float = 0.0
    """Of the host, from the first group to the last."""

    def merge(self, other: Done) -> None:
        """Add what other clients gave."""
        self.total.merge(other.total)
        self.kept += other.kept
        self.rows += other.rows
        self.states |= other.states
        self.failures += other.failures
        self.backoffs += other.backoffs


@dataclass(frozen=True)
class _Raised:
    """What an attempt raised, as text: the exception would keep the attempt's tensors alive."""

    reason: str
    out_of_memory: bool


class ClientHost:
    """Hosts any number of simulated clients of one experiment.

    Args:
        config: The resolved experiment.
        device: Where clients train.
    """

    def __init__(self, config: Experiment, device: str = "cpu") -> None:
        settle_process(config.engine.threads)
        self.config = config
        self.device = torch.device(device)
        self.node = socket.gethostname()
        cls = method_class(config.use)
        # Clients never hold the server's synthetic or public data.
        data = prepare(config, cls, self.device, synthetic=False)
        task = make_task(config, data, cls, self.device, server=False)
        self.method: Method = build_method(task.config, task)
        self._inputs, self._labels = map(as_tensor, data.local())
        self._prepare = self.method.task.prepare
        self._flops = FlopCounter(self.method)

    def train(self, work: Work, message: Params) -> Done:
        """Train every group of `work` on what the server sent."""
        message, started = to_device(message, self.device), time.perf_counter()
        done = Done(ExactSum(work.cohort_samples, work.cohort_size))
        for group in work.groups:
            self._train_group(group, work, message, done)
        if self.method.reduction == "sum":
            done.total.sums = to_device(done.total.sums, "cpu")
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
        if not culprits:  # only together do they fail: none of them can be blamed
            culprits = dict.fromkeys(group.client_ids, together)
        done.failures += [Failure(c, found.reason, self.node) for c, found in culprits.items()]
        rest = [client for client in group.client_ids if client not in culprits]
        if rest:
            self._train_group(group.only(rest), work, message, done)

    def _tried(self, group: Group, work: Work, message: Params) -> Done | _Raised:
        """What came of an attempt."""
        try:
            return self._attempt(group, work, message)
        except Exception as error:  # a method's own code may raise anything
            text = "".join(traceback.format_exception(error)).rstrip()
            reason = f"{type(error).__name__}: {error}\n{text}"
            return _Raised(reason, isinstance(error, torch.OutOfMemoryError))

    def _attempt(self, group: Group, work: Work, message: Params) -> Done:
        """All of a group at once; what raises half-way leaves nothing behind."""
        done = Done(ExactSum(work.cohort_samples, work.cohort_size))
        seed = self.config.train_seed
        batches = self._batches(group, work.round)
        epochs = self.config.train.epochs(work.round)
        flops = self._flops.of(message, batches, epochs, partial(self._one_sample, group, epochs))
        reset_peak_memory(self.device)
        kept = [to_device(work.states.get(c, {}), self.device) for c in batches.client_ids]
        states = [{k: v for k, v in state.items() if k != RESIDUAL} for state in kept]
        rngs = [torch_rng(seed, "client", work.round, client) for client in batches.client_ids]
        started = time.perf_counter()
        update, new_states = self.method.client_update(message, batches, states, rngs)
        if not self._only_summed(group):
            update = update.formed()
        self._synchronise()
        train_s = time.perf_counter() - started

        sent, up, residuals = self._send(batches, message, update, kept)
        weight = sent.weight.to(self.device)
        refused = dict(done.total.refused(sent.delta, weight, sent.products))
        for c, extra in enumerate(sent.extra):
            if wrong := [k for k, v in extra.items() if not v.isfinite().all()]:
                refused.setdefault(c, f"values of {wrong[0]!r} are NaN or infinite")
        real = range(len(group.client_ids))
        good = [c for c in real if c not in refused]
        rows = []
        if good:
            rows = self._rows(group, work.round, batches, message, update, up, flops, train_s)
        done.failures += [
            Failure(batches.client_ids[c], f"its update was refused: {reason}", self.node)
            for c, reason in sorted(refused.items())
            if c in real
        ]
        if not good:
            return done
        done.rows += [rows[c] for c in good]
        done.states |= {
            batches.client_ids[c]: to_device({**new_states[c], **residuals[c]}, "cpu")
            for c in good
            if new_states[c] or residuals[c]
        }
        first = good == list(range(len(good)))
        at = slice(len(good)) if first else good  # as usual: no copy is needed
        chosen = {k: v[at] for k, v in sent.delta.items()}
        weight = weight[at]
        if self.method.reduction == "sum":
            products = {k: v[at] for k, v in sent.products.items()}
            done.total.add(chosen, weight, products)
        else:
            done.kept += [
                (
                    batches.client_ids[c],
                    to_device(
                        Update(
                            {k: v[i : i + 1] for k, v in chosen.items()},
                            weight[i : i + 1],
                            update.linear,
                            extra=update.extra[c : c + 1],
                        ),
                        "cpu",
                    ),
                )
                for i, c in enumerate(good)
            ]
        return done

    def _rows(
        self,
        group: Group,
        round: int,
        batches: Batches,
        message: Params,
        update: Update,
        up: int,
        flops: Sequence[int],
        train_s: float,
    ) -> list[dict[str, Any]]:
        """One row of the `clients` table per real client."""
        real = len(group.client_ids)
        change = update.delta if update.change is None else update.change
        products = update.products if update.change is None else {}
        length = norms(change, products).tolist() if change or products else [0.0] * real
        measured: dict[str, list[float]] = {}
        if self.config.evaluation.client_metrics:
            measured = self._before_and_after(batches, message, change)
        if any(len(held) for held in group.held):
            held = Group(0, group.client_ids, group.held)
            found = self._before_and_after(self._batches(held, round), message, change)
            measured |= {f"holdout_{name}": values for name, values in found.items()}
        memory = peak_memory(self.device)
        rows = []
        for c, client in enumerate(group.client_ids):
            samples = len(group.indices[c])
            rows.append(
                {
                    "client_id": client,
                    "num_samples": samples,
                    "num_steps": num_steps(samples, self.config.train, round),
                    "status": "ok",
                    "weight": float(update.weight[c]),
                    "update_norm": length[c],
                    "bytes_up": up + (num_bytes(update.extra[c]) if update.extra else 0),
                    "train_flops": flops[c],
                    "train_s": train_s / real,
                    "node": self.node,
                    "device": str(self.device),
                    **memory,
                    **{name: values[c] for name, values in measured.items()},
                }
            )
        return rows

    def _only_summed(self, group: Group) -> bool:
        """Whether nothing but sum and length of the clients' changes will be asked for."""
        config = self.config
        return (
            self.method.reduction == "sum"
            and config.wire.compression == "none"
            and not config.server.class_weighting
            and not config.evaluation.client_metrics
            and not any(len(held) for held in group.held)
        )

    def _send(
        self, batches: Batches, message: Params, update: Update, kept: list[State]
    ) -> tuple[Update, int, list[State]]:
        """What the server will read, the bytes of one client, and what each client keeps of it."""
        server, wire, delta = self.config.server, self.config.wire, update.delta
        residuals: list[State] = [{} for _ in kept]
        encoded = delta
        if wire.compression != "none":
            if wire.error_feedback:
                lost = {name: torch.zeros_like(value) for name, value in delta.items()}
                for c, state in enumerate(kept):
                    for name, value in state.get(RESIDUAL, {}).items():
                        lost[name][c] = value
                delta = add(delta, lost)
            sent = compress(delta, wire)
            encoded, delta = sent.encoded, sent.decoded
            if wire.error_feedback:
                residuals = [{RESIDUAL: unstack(sent.lost, c)} for c in range(len(kept))]
        up = num_bytes(unstack(encoded, 0))
        up += sum(product.num_bytes for product in update.products.values())
        if server.class_weighting:
            counts = batches.label_counts(self.method.task.num_classes)
            samples = batches.num_samples.to(self.device)
            rows = self.method.class_rows(message)
            delta = weigh_by_class(delta, rows, counts, samples, server.class_weighting)
            up += num_bytes({SHARE: delta[SHARE][0]})
        return replace(update, delta=delta), up, residuals

    @torch.no_grad()
    def _before_and_after(
        self, batches: Batches, message: Params, change: Params
    ) -> dict[str, list[float]]:
        """Loss and accuracy on each client's own training data, as received and as trained."""
        start = {name: message[name] for name in change if name in message}
        if not change or len(start) != len(change):
            return {}
        before = stack(start, batches.num_clients)
        found: dict[str, list[float]] = {}
        for when, params in (("before", before), ("after", add(before, change))):
            loss = torch.zeros(batches.num_clients, device=self.device)
            correct, count = torch.zeros_like(loss), torch.zeros_like(loss)
            for batch in batches.all_samples():
                logits = self.method.client_logits(message, params, batch.x)
                if logits is None:
                    return {}
                valid = batch.mask.sum(1)
                loss += cross_entropy(logits, batch.y, batch.mask) * valid
                correct += ((logits.argmax(-1) == batch.y) & batch.mask).sum(1)
                count += valid
            found[f"loss_{when}"] = (loss / count.clamp_min(1)).tolist()
            found[f"accuracy_{when}"] = (correct / count.clamp_min(1)).tolist()
        return found

    def _batches(self, group: Group, round: int) -> Batches:
        config = self.config
        return make_batches(
            group,
            self._inputs,
            self._labels,
            config.train,
            config.train_seed,
            round,
            self._prepare,
            self.device,
        )

    def _one_sample(self, group: Group, epochs: int, place: int) -> Batches:
        """A client with one of its samples, to count what it costs."""
        one = Group(0, group.client_ids[place : place + 1], (group.indices[place][:1],))
        train = self.config.train.model_copy(update={"local_epochs": epochs})
        return make_batches(
            one, self._inputs, self._labels, train, 0, 0, self._prepare, self.device
        )

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
