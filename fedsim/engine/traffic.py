"""The bytes a method sends, counted from the tensors of a run that has not begun."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsim.config import Experiment
from fedsim.data.configured import split_clients
from fedsim.engine.batching import Group, make_batches
from fedsim.engine.prepare import prepare
from fedsim.engine.round import LocalExecutor
from fedsim.engine.task import as_tensor, make_task, settle_process
from fedsim.engine.wire import compress
from fedsim.methods import build_method, method_class
from fedsim.methods.base import Received
from fedsim.params import num_bytes, unstack
from fedsim.seeding import torch_rng


@dataclass(frozen=True)
class Traffic:
    """Bytes of one client.

    Attributes:
        num_rounds: Rounds of the run; 0 for methods that do not train.
        up: Per round, to the server.
        down: Per round, from the server.
        once: Before its first round: constants, and the encoders the method leaves as they are.
        early: What the first rounds send both ways beyond that, where they are unlike the others.
    """

    num_rounds: int
    up: int
    down: int
    once: int
    early: int = 0


def traffic(config: Experiment) -> Traffic:
    """Set a method up and train client 0, to see what it sends."""
    settle_process(config.engine.threads)
    cls, device = method_class(config.use), torch.device("cpu")
    num_rounds = cls.num_rounds(config)
    if not cls.uses_clients or cls.pooled:
        return Traffic(num_rounds, 0, 0, 0)
    data = prepare(config, cls, device)
    method = build_method(config, make_task(config, data, cls, device, server=True))
    state = method.setup(method.task, torch_rng(config.train_seed, "setup"))
    constants = method.constants(state)
    arrays = data.arrays
    split = split_clients(
        config, arrays["train_labels"], arrays.get("train_clients"), arrays.get("train_domains")
    )
    # A method that averages sends the same in every round, and one sample shows it. Any other may
    # go through phases, and has come to its last one by round 3.
    phases = 1 if cls.averages or cls.reduction == "keep" else min(3, max(1, num_rounds))
    one = Group(0, (0,), (split.fit[0][: 1 if phases == 1 else None],))
    inputs, labels = map(as_tensor, data.local())
    train = config.train.model_copy(update={"local_epochs": 1})
    batches = make_batches(one, inputs, labels, train, 0, 0, method.task.prepare, device)
    rngs = [torch_rng(0, "traffic") for _ in batches.client_ids]
    sent: list[tuple[int, int]] = []
    for number in range(1, phases + 1):
        message = method.message(state)
        update, _ = method.client_update(constants | message, batches, [{}] * len(rngs), rngs)
        delta = unstack(update.delta, 0)
        travels = compress(update.delta, config.wire).encoded
        beside = num_bytes(update.extra[0]) if update.extra else 0
        down = num_bytes(method.download(message, 0))
        sent.append((num_bytes(unstack(travels, 0)) + beside, down))
        if number < phases:
            received = Received(delta, num_clients=1, round=number)
            state = method.aggregate(state, received)
            state = method.finish_round(state, received, LocalExecutor(), rngs[0])
    up, down = sent[-1]
    early = sum(map(sum, sent)) - phases * (up + down)
    once = num_bytes(constants) + data.frozen_bytes(cls)
    return Traffic(num_rounds, up, down, once, early)
