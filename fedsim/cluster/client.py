"""`ClientActor`: a Ray actor that hosts simulated clients.

Torch is imported inside the actor, so that drivers can name the class without loading it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from fedsim.cluster.placement import MEMORY_HEADROOM
from fedsim.config import Experiment

if TYPE_CHECKING:
    import numpy as np

    from fedsim.engine.host import ClientHost, Done, Work
    from fedsim.inputs.draw_images import Drawer, Job, Recipe

T = TypeVar("T")
R = TypeVar("R")


def device_of_actor(gpus: float) -> str:
    """`cuda` if Ray gave this actor a real GPU, else `cpu`; limits its share of the memory.

    Ray can count logical GPUs on a machine without any; actors then compute on the CPU.
    """
    import torch

    if gpus == 0 or not torch.cuda.is_available():
        return "cpu"
    if gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus * MEMORY_HEADROOM)
    return "cuda"


def whereabouts(device: str) -> dict[str, Any]:
    """Process, node and accelerators of the calling actor."""
    context = ray.get_runtime_context()
    return {
        "pid": os.getpid(),
        "node_id": context.get_node_id(),
        "gpu_ids": context.get_accelerator_ids().get("GPU", []),
        "resources": context.get_assigned_resources(),
        "device": device,
    }


def _settle(config: Experiment) -> None:
    """Prepare this process for work of an experiment."""
    from fedsim.process import settle_process

    config.enter()
    settle_process(config.engine.threads)


class ClientActor:
    """Hosts simulated clients on a GPU fraction, 0 to 1, or on whole GPUs."""

    def __init__(self, gpus: float) -> None:
        self._device = device_of_actor(gpus)
        self._config: Experiment | None = None
        self._host: ClientHost | None = None
        self._drawer: Drawer | None = None

    def where(self) -> dict[str, Any]:
        """Process, node and accelerators of this actor."""
        return whereabouts(self._device)

    def train(self, config: Experiment, work: Work, message: dict[str, np.ndarray]) -> Done:
        """Train the groups of `work`; the host is rebuilt only when the experiment changes."""
        from fedsim.cluster.transport import pack, unpack
        from fedsim.engine.host import ClientHost
        from fedsim.inputs.task import as_tensor

        if self._host is None or config != self._config:
            config.enter()
            self._host, self._config = ClientHost(config, self._device), config
        work = replace(work, states=unpack(work.states))
        done = self._host.train(work, {name: as_tensor(value) for name, value in message.items()})
        return done.mapped(pack)

    def draw(self, config: Experiment, recipe: Recipe, job: Job) -> np.ndarray:
        """Draw one batch of a synthetic set; the generator stays loaded for the next one."""
        from fedsim.inputs.draw_images import Drawer

        if self._drawer is None:
            _settle(config)
            self._drawer = Drawer(self._device)
        return self._drawer.draw(recipe, job)

    def call(self, config: Experiment, function: Callable[[T], R], item: T) -> R:
        """Server-side work of a round, on this actor's share of the machine."""
        _settle(config)
        return function(item)

    def stop_drawing(self) -> None:
        """Give the generator's memory back."""
        if self._drawer is not None:
            self._drawer.release()
            self._drawer = None
