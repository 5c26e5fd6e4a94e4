"""The bytes a method sends, counted from the tensors of a run that has not begun."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsim.config import Experiment
from fedsim.data.configured import split_clients
from fedsim.engine.batching import Group, make_batches
from fedsim.engine.host import pixel_normaliser
from fedsim.engine.prepare import prepare
from fedsim.engine.task import as_tensor, make_task, settle_numerics
from fedsim.methods import build_method, method_class
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
    """

    num_rounds: int
    up: int
    down: int
    once: int


def traffic(config: Experiment) -> Traffic:
    """Set a method up and train one client on one sample, to see what it sends."""
    settle_numerics(config.engine.threads)
    cls, device = method_class(config.use), torch.device("cpu")
    num_rounds = cls.num_rounds(config)
    if not cls.uses_clients or cls.pooled:
        return Traffic(num_rounds, 0, 0, 0)
    data = prepare(config, cls, device)
    method = build_method(config, make_task(config, data, cls, device, server=True))
    state = method.setup(method.task, torch_rng(config.train_seed, "setup"))
    constants, message = method.constants(state), method.message(state)
    arrays = data.arrays
    split = split_clients(
        config, arrays["train_labels"], arrays.get("train_clients"), arrays.get("train_domains")
    )
    one = Group(0, (0,), (split.fit[0][:1],))
    inputs, labels = as_tensor(arrays["train_inputs"]), as_tensor(arrays["train_labels"])
    prepared = pixel_normaliser(method)
    batches = make_batches(one, inputs, labels, config.train, 0, 0, prepared, device)
    rngs = [torch_rng(0, "traffic") for _ in batches.client_ids]
    update, _ = method.client_update(constants | message, batches, [{}] * len(rngs), rngs)
    return Traffic(
        num_rounds,
        num_bytes(unstack(update.delta, 0)),
        num_bytes(message),
        num_bytes(constants) + data.frozen_bytes(cls),
    )
