"""Floating-point operations of local training, counted once per node and kind of run."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.data.store import shared_arrays
from fedsim.methods.base import Batches, Method
from fedsim.params import Params
from fedsim.seeding import torch_rng


class FlopCounter:
    """What a round costs a method per sample, which may change with what the server sends.

    All local epochs are run on the sample: sums over samples take one pass, whatever their number.

    Figures are kept in the node's store, named by all that they depend on.
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
        with CountedOperations() as counted:
            self._method.client_update(message, batches, [{}] * batches.num_clients, rngs)
        return np.array(counted.flops // batches.num_clients)


class CountedOperations(TorchDispatchMode):
    """Within this block operations are counted, by the formulas of torch's `FlopCounterMode`.

    That class would load torch's compiler: 3 s of CPU time and 70 MB in a process. The formulas
    alone load Triton, so only who counts imports them.

    Attributes:
        flops: Of what was done so far.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self._formulas: dict[Any, Callable[..., Any]] = flop_registry
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Does the operation, and adds what it costs."""
        out = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func._overloadpacket):
            self.flops += int(formula(*args, **(kwargs or {}), out_val=out))
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and to say so loads the compiler
