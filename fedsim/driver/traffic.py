"""The bytes a method sends, counted from the tensors of a run that has not begun."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.config import Experiment
from fedsim.engine.batching import Group, make_batches
from fedsim.engine.round import LocalExecutor
from fedsim.engine.schedule import sample_cohort
from fedsim.engine.update_steps.base import GroupContext
from fedsim.engine.update_steps.pipeline import Pipeline
from fedsim.inputs.prepare import prepare
from fedsim.inputs.task import as_tensor, make_task
from fedsim.methods import build_method, method_class
from fedsim.methods.base import Received
from fedsim.params import num_bytes, unstack
from fedsim.process import settle_process
from fedsim.seeding import torch_rng


@dataclass(frozen=True)
class Traffic:
    """Bytes of one client; the mean over clients if they differ, such as in their networks.

    Attributes:
        num_rounds: Rounds of the run; 0 for methods that do not train.
        up: Per round, to the server.
        down: Per round, from the server.
        once: Before its first round: constants, and encoders that the method does not change.
        early: Bytes of the first rounds, both ways, beyond those of a later round.
    """

    num_rounds: int
    up: int
    down: int
    once: int
    early: int = 0

    def of_a_run(self, num_clients: int, cohort_size: int, train_seed: int) -> int:
        """Bytes of all clients together, as the cohorts of this seed take part."""
        every_round = self.num_rounds * (self.up + self.down) + self.early
        downloaded = set(range(num_clients)) if self.num_rounds else set[int]()
        if cohort_size < num_clients:
            rounds = range(1, self.num_rounds + 1)
            cohorts = (sample_cohort(num_clients, cohort_size, train_seed, r) for r in rounds)
            downloaded = {client for cohort in cohorts for client in cohort}
        return cohort_size * every_round + self.once * len(downloaded)


def traffic(config: Experiment) -> Traffic:
    """Set a method up, train one client of each variant, and count what it sends."""
    settle_process(config.engine.threads)
    cls, device = method_class(config.use), torch.device("cpu")
    num_rounds = cls.num_rounds(config.for_method())
    if not cls.uses_clients or cls.pooled:
        return Traffic(num_rounds, 0, 0, 0)
    data = prepare(config, cls, device)
    task = make_task(config.for_method(), data, cls, device, server=True)
    method = build_method(task.config, task)
    state = method.setup(method.task, torch_rng(config.train_seed, "setup"))
    constants = method.constants(state)
    once, split = num_bytes(constants) + data.frozen_bytes(cls), data.holdings
    variants = Counter(map(method.variant, range(len(split.fit))))
    firsts = {method.variant(c): c for c in reversed(range(len(split.fit)))}
    # A method that averages sends the same in every round, and one sample is enough. Any other
    # method may go through phases; the last phase begins by round 3.
    phases = 1 if cls.averages or cls.reduction == "keep" else min(3, max(1, num_rounds))
    inputs, labels = map(as_tensor, data.local())
    train, pipeline = config.train.model_copy(update={"local_epochs": 1}), Pipeline.of(config)

    def sent_by(client: int) -> list[tuple[int, int]]:
        """Bytes up and down in the first rounds."""
        begun, sent = state, list[tuple[int, int]]()
        one = Group(0, (client,), (split.fit[client][: 1 if phases == 1 else None],))
        batches = make_batches(one, inputs, labels, train, 0, 0, method.task.prepare, device)
        rngs = [torch_rng(0, "traffic") for _ in batches.client_ids]
        for number in range(1, phases + 1):
            message = method.message(begun)
            update, _ = method.client_update(constants | message, batches, [{}] * len(rngs), rngs)
            update = update.formed()
            delta = unstack(update.delta, 0)
            context = GroupContext(method, constants | message, batches, number, config.train_seed)
            travels = pipeline.on_clients(update, context, [{}] * len(rngs))
            extra = num_bytes(update.extra[0]) if update.extra else 0
            down = num_bytes(method.download(message, client))
            sent.append((travels.num_bytes + extra, down))
            if number < phases:
                received = Received(delta, num_clients=1, round=number)
                begun = method.aggregate(begun, received)
                begun = method.finish_round(begun, received, LocalExecutor(), rngs[0])
        return sent

    each = [np.array(sent_by(client)) * variants[kind] for kind, client in firsts.items()]
    sent = np.sum(each, axis=0) / variants.total()
    up, down = (int(value) for value in sent[-1].round())
    early = int(sent.sum().round()) - phases * (up + down)
    return Traffic(num_rounds, up, down, once, early)
