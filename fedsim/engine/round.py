"""The round loop: what one run does, from set-up to its last committed round.

The same loop runs in-process, inside an actor and inside a sweep's trial: `ClientPool` hides where
clients train, and `Sinks` hides where rows go. A round passes through these files:

    collect.py      the clients' answers are gathered; `host.py` trains groups and sums updates
    server_step.py  the server's optimiser on the averaged update
    recorder.py     rows of what happened; `evaluation_rows.py` scores the model
    checkpoint.py   the round is committed
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from fedsim.config import Experiment
from fedsim.engine.batching import make_groups
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.client_states import ClientState, ClientStates
from fedsim.engine.collect import ClientPool, Collected, collect
from fedsim.engine.evaluation_rows import EvaluationRows
from fedsim.engine.recorder import Recorder, about_run, now
from fedsim.engine.schedule import sample_cohort
from fedsim.engine.server_step import Moments, server_step
from fedsim.engine.sinks import Sinks
from fedsim.engine.update_steps.pipeline import Pipeline
from fedsim.errors import CheckpointError
from fedsim.inputs.prepare import prepare
from fedsim.inputs.task import make_task
from fedsim.methods import build_method, method_class
from fedsim.methods.base import Executor, Predictor, Received, State
from fedsim.params import Params, norms, num_bytes, to_device
from fedsim.process import settle_process
from fedsim.seeding import torch_rng

T = TypeVar("T")
R = TypeVar("R")


class LocalExecutor:
    """Server-side work in this process, one item after the other."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`[function(item) for item in items]`."""
        return [function(item) for item in items]


class Federation:
    """One run: `setup`, then `step` until `finished`, then `finish`.

    Every round commits its table parts first, then its checkpoint. A kill interrupts the round in
    flight; the next `setup` drops the rows of that round and goes on from the checkpoint.

    Clients train in `pool`. The server computes on `device`, and large server-side work of a round
    runs in `executor`. `about` are more columns of the run's row in `runs`.
    """

    def __init__(
        self,
        config: Experiment,
        sinks: Sinks,
        checkpoints: CheckpointFolder,
        pool: ClientPool,
        executor: Executor | None = None,
        device: str = "cpu",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        settle_process(config.engine.threads)
        self.config, self.sinks, self.checkpoints, self.pool = config, sinks, checkpoints, pool
        self.executor = executor or LocalExecutor(device)
        self.device, self._about = torch.device(device), about or {}
        self.cls = method_class(config.use)
        self.num_rounds = self.cls.num_rounds(config.for_method())
        self._pipeline = Pipeline.of(config)
        self.round = 0
        self._state: State = {}
        self._client_states = ClientStates(checkpoints.path)
        self._downloaded: set[int] = set()
        self._moments: Moments = {}
        self._scores: dict[str, Any] = {}
        self._comparable, self._resumes, self._wall_s = True, 0, 0.0
        self._told: tuple[bool, int] | None = None
        self._told_at_s = 0.0
        self._commit_s: float | None = None
        self._started = time.perf_counter()

    @property
    def finished(self) -> bool:
        """Whether the last round is committed."""
        return self.round >= self.num_rounds

    def setup(self) -> dict[str, Any]:
        """Load everything; resume from the last checkpoint, or evaluate and commit round 0.

        Returns:
            The row of `rounds` as far as it is known (round, accuracy, loss), and `num_rounds`.
        """
        config = self.config
        self.checkpoints.claim()
        snapshot = self.checkpoints.latest()
        self.sinks.begin(-1 if snapshot is None else snapshot["round"])
        about = about_run(config, self.cls, self.device) | {"num_actors": self.pool.num_actors}
        self.sinks.update_run(config=config.model_dump(mode="json"), **about, **self._about)
        self.data = prepare(config, self.cls, self.device, draw=self.pool.draw)
        split = self.data.holdings
        self._fit, self._held = split.fit, split.held
        if self.cls.pooled:  # a ceiling: one client has everything
            self._fit, self._held = (split.fit_rows,), ()
        task = make_task(config.for_method(), self.data, self.cls, self.device, server=True)
        self.method = build_method(task.config, task)
        final, evaluated = config.phase == "final", config.evaluation
        self.evaluations = EvaluationRows(evaluated, final, self.sinks, self.data, self.device)
        self.record = Recorder(config, self.sinks, self.data, self.device)
        self.record.describe()
        if snapshot is not None:
            self._restore(snapshot)
            return {"round": self.round, "num_rounds": self.num_rounds, **self._scores}
        self._state = self.method.setup(task, torch_rng(config.train_seed, "setup"))
        self.record.begin(task)
        return self._commit(
            {"bytes_up": 0, "bytes_down": 0, "num_clients_ok": 0, "num_clients_failed": 0}
        )

    def step(self) -> dict[str, Any]:
        """One communication round.

        Returns:
            Its row of `rounds`, committed, and `num_rounds`.

        Raises:
            ClientError: A client failed and the policy is `raise`.
            QuorumError: Too many clients failed.
        """
        config, number, clock = self.config, self.round + 1, _Clock()
        download, got = Params(), Collected(Received({}))
        row: dict[str, Any] = {"bytes_up": 0, "bytes_down": 0}
        if self.cls.uses_clients:
            download, got, row = self._train_clients(number)
        row |= {"num_clients_ok": len(got.rows), "num_clients_failed": len(got.failed)}
        row["train_s"] = clock.lap()
        # 5. The server's step on the averaged update.
        received = to_device(got.received, self.device)
        trained = sum(client["num_samples"] for client in got.rows)
        share = trained / self.data.holdings.num_samples
        received = replace(received, round=number, share=share)
        received = self._pipeline.on_server(received, self.method, download)
        if self.method.reduction == "sum":
            received = replace(received, kept=())
        if received.mean and self.cls.averages:
            mean, self._moments = server_step(received.mean, self._moments, config.server)
            received = replace(received, mean=mean)
        self._client_states.update(got.states)
        self._comparable &= got.comparable
        self._state = self.method.aggregate(self._state, received)
        if received.mean:
            row["update_norm"] = float(norms({k: v[None] for k, v in received.mean.items()}))
        row["aggregate_s"] = clock.lap()
        # 6. The server's own work: distillation, training on generated images.
        rng = torch_rng(config.train_seed, "server", number)
        self._state = self.method.finish_round(self._state, received, self.executor, rng)
        row["distill_s"] = clock.lap()
        made = self.method.made(self._state)
        self.record.made(made, number)
        if made and any(kind == "out_of_memory" for kind, *_ in made.events):
            self._comparable = False  # sets are made in smaller parts, which round differently
        # 7. Evaluate, write rows, commit.
        self.round = number
        return self._commit(row)

    def _train_clients(self, number: int) -> tuple[Params, Collected, dict[str, Any]]:
        """Clients of a round train.

        Returns:
            Their message, the outcome of their training, and their part of the row of `rounds`.
        """
        config, num_clients = self.config, len(self._fit)
        # 1. Sample the cohort, keyed by (seed, round) alone.
        cohort_size = min(config.cohort_size, num_clients)
        cohort = sample_cohort(num_clients, cohort_size, config.train_seed, number)
        held = self._held if config.evaluation.personal and number == self.num_rounds else ()
        groups = make_groups(cohort, self._fit, config.group_size, held)
        # 2. What goes down the wire, the same for every client.
        constants, message = self.method.constants(self._state), self.method.message(self._state)
        download, states = constants | message, self._client_states
        # 3. Clients train, batched on the client axis. 4. Updates stream into exact sums.
        tell = self.record.event
        try:
            got = collect(self.pool, groups, download, states, number, config.failures, tell)
        except BaseException:
            self.sinks.commit()  # failures are in the tables even when they end the run
            raise
        return (
            download,
            got,
            self._write_clients(number, cohort, num_bytes(constants), message, got),
        )

    def finish(self) -> None:
        """Mark the run finished and merge its table parts."""
        self._close("finished")

    def abort(self, status: str, error: BaseException | None = None) -> None:
        """End early, as `failed`, `interrupted` or `stopped`; the run can be resumed."""
        self._close(status, None if error is None else f"{type(error).__name__}: {error}")

    def _close(self, status: str, error: str | None = None) -> None:
        if not self.checkpoints.claimed:  # another process writes the tables
            return
        self.sinks.update_run(status=status, error=error, finished_at=now(), wall_s=self._wall())
        self.sinks.end_others()
        self._tell_lost_sinks()
        self.sinks.end()
        self.checkpoints.release()

    def _write_clients(
        self, number: int, cohort: list[int], constants: int, message: Params, got: Collected
    ) -> dict[str, Any]:
        """Rows of `clients`, and their totals for the row of `rounds`.

        A client's first participation also downloads the constants and the encoders that the
        method leaves as they are.
        """
        once = constants + self.data.frozen_bytes(self.cls)
        parts, whole = {c: self.method.download(message, c) for c in cohort}, num_bytes(message)
        each = {c: whole if part is message else num_bytes(part) for c, part in parts.items()}
        if self.cls.pooled:  # the data is in one place, so nothing is sent
            for client in got.rows:
                client |= {"bytes_up": 0}
            each, once = dict.fromkeys(cohort, 0), 0
        down = {c: each[c] + (c not in self._downloaded) * once for c in cohort}
        self._downloaded |= set(cohort)
        failed = [
            {"client_id": f.client_id, "status": "failed", "node": f.node} for f in got.failed
        ]
        for client in got.rows + failed:
            client |= {"round": number, "bytes_down": down[client["client_id"]]}
        self.sinks.append("clients", got.rows + failed)
        if number == self.num_rounds:
            self.evaluations.personal(got.rows, number)
        row: dict[str, Any] = {
            "bytes_up": sum(client["bytes_up"] for client in got.rows),
            "bytes_down": sum(down.values()),
            "num_clients_sampled": len(cohort),
            "train_flops": sum(client["train_flops"] for client in got.rows),
        }
        losses = [client["loss_after"] for client in got.rows if "loss_after" in client]
        if losses:
            weights = [client["num_samples"] for client in got.rows if "loss_after" in client]
            row["train_loss"] = float(np.average(losses, weights=weights))
        return row

    def _commit(self, row: dict[str, Any]) -> dict[str, Any]:
        """Evaluate the round, write its row, and make it the one to resume from."""
        clock = _Clock()
        self._scores = self.evaluations.write(*self._models(), self.round, self.finished)
        if not math.isfinite(self._scores["loss"]):
            text = "the global model predicts NaN or infinite scores"
            self.record.event("diverged", text, self.round)
        row = {"round": self.round, **row, **self._scores, "eval_s": clock.lap(), "time": now()}
        row["round_s"] = sum(row.get(f"{part}_s", 0.0) for part in _PARTS)
        row["commit_s"] = self._commit_s
        self.sinks.append("rounds", [row])
        # The run's row is wide, so it is written when a fact changed, or every few seconds.
        facts, wall_s = (self._comparable, self._resumes), self._wall()
        if facts != self._told or wall_s > self._told_at_s + _TELL_EVERY_S:
            self._told, self._told_at_s = facts, wall_s
            comparable, resumes = facts
            self.sinks.update_run(bit_comparable=comparable, num_resumes=resumes, wall_s=wall_s)
        self.sinks.commit()
        self._tell_lost_sinks()
        snapshot = {
            "state": to_device(self._state, "cpu"),
            "client_states": self._client_states.commit(self.round),
            "moments": to_device(self._moments, "cpu"),
            "downloaded": torch.tensor(sorted(self._downloaded), dtype=torch.int64),
            "scores": self._scores,
            "threads": self.config.engine.threads,
            "comparable": self._comparable,
            "resumes": self._resumes,
            "wall_s": self._wall(),
        }
        self.checkpoints.save(self.round, snapshot)
        self._commit_s = clock.lap()
        return row | {"num_rounds": self.num_rounds}

    def _tell_lost_sinks(self) -> None:
        for name, error in self.sinks.take_lost():
            text = f"sink {name!r} hears no more: {error}"
            event = {"time": now(), "round": self.round, "kind": "sink_lost", "message": text}
            self.sinks.append("events", [event])

    def _models(self) -> tuple[list[Predictor], dict[str, Predictor]]:
        """The served model, or without a global model every client's own; and others by name."""
        if not self.cls.personal:
            states: list[State | None] = [None]
        else:
            kept = self._client_states
            states = [kept.get(c, ClientState()).method for c in range(len(self._fit))]
        models = [self.method.predictor(self._state, to_device(s, self.device)) for s in states]
        prepare, others = self.method.task.prepare, self.method.predictors(self._state)

        def on_stored(model: Predictor) -> Predictor:
            return lambda stored: model(prepare(stored))

        return [*map(on_stored, models)], {name: on_stored(m) for name, m in others.items()}

    def _restore(self, snapshot: dict[str, Any]) -> None:
        if snapshot["threads"] != self.config.engine.threads:
            raise CheckpointError(
                f"this run was computed with engine.threads={snapshot['threads']}; "
                f"resume it with the same value, not {self.config.engine.threads}"
            )
        self.round = snapshot["round"]
        self._state = self.method.restored(to_device(snapshot["state"], self.device))
        self._client_states.restore(snapshot["client_states"])
        self._moments = to_device(snapshot["moments"], self.device)
        self._downloaded = set(snapshot["downloaded"].tolist())
        self._scores = snapshot["scores"]
        self._comparable, self._wall_s = snapshot["comparable"], snapshot["wall_s"]
        self._resumes = snapshot["resumes"] + 1
        self.record.event("resumed", f"from the checkpoint of round {self.round}", self.round)

    def _wall(self) -> float:
        return self._wall_s + time.perf_counter() - self._started


_TELL_EVERY_S = 2.0
_PARTS = ("train", "aggregate", "distill", "eval")


class _Clock:
    def __init__(self) -> None:
        self._mark = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now, before = time.perf_counter(), self._mark
        self._mark = now
        return now - before
