"""Floating-point operations of local training, counted once per node and kind of run."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.methods.base import Batches, Method, State
from fedsim.params import Params
from fedsim.seeding import torch_rng
from fedsim.storage.array_cache import shared_arrays

_FORMAT = 1
"""Raised whenever counting changes; older figures are then not found."""


class FlopCounter:
    """Counts the operations of a method's clients; they may change with the server's message.

    Figures are kept in the node's store, named by everything that they depend on.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._known: dict[tuple[str, str, int], int] = {}

    def of(
        self, message: Params, batches: Batches, epochs: int, one: Callable[[int], Batches]
    ) -> list[int]:
        """FLOPs of every real client of a group in one round.

        All local epochs are run on one sample, and `Method.local_flops` scales the count. `one`
        makes the batches of the client at a place in the group with one of its samples.
        """
        found = []
        for place, client in enumerate(batches.client_ids):
            if client < 0:
                continue  # a ghost
            kind = self._method.variant(client)
            each = self._unit(message, kind, epochs, partial(one, place))
            found.append(round(float(self._method.local_flops(message, batches, each)[place])))
        return found

    def _unit(self, message: Params, variant: str, epochs: int, one: Callable[[], Batches]) -> int:
        shapes = json.dumps({name: list(value.shape) for name, value in message.items()})
        known = shapes, variant, epochs
        if known not in self._known:
            config = self._method.config
            code = Path(inspect.getfile(type(self._method))).read_bytes()
            key = {
                "kind": "flops",
                "format": _FORMAT,
                "versions": [version("fedsim"), torch.__version__],
                "code": hashlib.sha256(code).hexdigest(),
                "options": config.options,
                "cache": config.cache.model_dump(mode="json"),
                "distill": config.distill.model_dump(mode="json"),
                "optimizer": config.train.optimizer,
                "clip": config.models.clip,
                "classifier": config.models.classifier.model_dump(),
                "message": shapes,
                "variant": variant,
                "epochs": epochs,
                "num_classes": self._method.task.num_classes,
                "inputs": list(one().inputs.shape[1:]),
            }
            found = shared_arrays(key, lambda: {"flops": self._count(message, one())})
            self._known[known] = int(found["flops"].item())
        return self._known[known]

    def _count(self, message: Params, batches: Batches) -> np.ndarray:
        def train() -> None:
            rngs = [torch_rng(0, "flops") for _ in batches.client_ids]
            states: list[State] = [{} for _ in batches.client_ids]
            self._method.client_update(message, batches, states, rngs)[0].formed()

        train()  # builds and loads what a round does not build or load again
        with CountedOperations() as counted:
            train()
        trained = batches.num_clients if self._method.trains_ghosts else 1
        return np.array(counted.flops // trained)


class CountedOperations(TorchDispatchMode):
    """Counts the operations in this block by the formulas of torch's `FlopCounterMode`.

    The gradient of a convolution in groups has a formula of its own: torch's lets every group's
    weights read all groups' inputs. `FlopCounterMode` itself would load torch's compiler, which
    takes 3 s of CPU time and 70 MB. Its formulas load Triton, so they are imported only here.

    Attributes:
        flops: Operations so far.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import conv_flop_count, flop_registry

        def convolution_backward(
            grad: Any, x: Any, weight: Any, *rest: Any, out_val: Any, **kwargs: Any
        ) -> int:
            transposed, wanted = rest[4], rest[7]
            forwards = conv_flop_count(x.shape, weight.shape, grad.shape, transposed)
            return forwards * sum(wanted[:2])

        super().__init__()
        backward = {torch.ops.aten.convolution_backward: convolution_backward}
        self._formulas: dict[Any, Callable[..., Any]] = {**flop_registry, **backward}
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
