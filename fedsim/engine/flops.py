"""Floating-point operations of local training, counted once per node and kind of run."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from fedsim.data.store import shared_arrays
from fedsim.methods.base import Batches, Method
from fedsim.params import Params
from fedsim.seeding import torch_rng


class FlopCounter:
    """What a round costs a method per sample, which may change with what the server sends.

    All local epochs are run on the sample: sums over samples take one pass, whatever their number.

    Counting loads torch's compiler, 3 s of CPU time in a process; so figures are kept in the node's
    store, named by all that they depend on.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._known: dict[tuple[str, int], int] = {}

    def per_sample(self, message: Params, epochs: int, one: Callable[[], Batches]) -> int:
        """FLOPs of one client for one sample in one round.

        Args:
            message: What the clients received.
            epochs: Local epochs of the round.
            one: Makes the batches of one client with one sample, for so many epochs.
        """
        shapes = json.dumps({name: list(value.shape) for name, value in message.items()})
        if (shapes, epochs) not in self._known:
            config = self._method.config
            code = Path(inspect.getfile(type(self._method))).read_bytes()
            key = {
                "kind": "flops",
                "versions": [version("fedsim"), torch.__version__],
                "code": hashlib.sha256(code).hexdigest(),
                "options": config.options,
                "cache": config.cache.model_dump(mode="json"),
                "distill": config.distill.model_dump(mode="json"),
                "optimizer": config.train.optimizer,
                "clip": config.models.clip,
                "classifier": config.models.classifier.model_dump(),
                "message": shapes,
                "epochs": epochs,
                "num_classes": self._method.task.num_classes,
                "inputs": list(one().inputs.shape[1:]),
            }
            found = shared_arrays(key, lambda: {"flops": self._count(message, one())})
            self._known[shapes, epochs] = int(found["flops"].item())
        return self._known[shapes, epochs]

    def _count(self, message: Params, batches: Batches) -> np.ndarray:
        rngs = [torch_rng(0, "flops") for _ in batches.client_ids]
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()
        with counter:
            self._method.client_update(message, batches, [{}] * batches.num_clients, rngs)
        return np.array(counter.get_total_flops() // batches.num_clients)


class _NoModules(ModuleTracker):
    """Tracks nothing: torch's hooks on modules refuse gradients by a module's input."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...
