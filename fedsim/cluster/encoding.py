"""Encoding images on several actors, each with a GPU fraction, before the first run begins.

Only the process that prepares the data touches the store. Shards travel to the actors, image files
undecoded, and their rows come back through the object store. So an actor may be on any node, and
its death costs one shard. Every actor computes the same bits from a shard.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayTaskError

from fedsim.cluster.client import device_of_actor, whereabouts
from fedsim.cluster.placement import Placement
from fedsim.cluster.pool import finished
from fedsim.cluster.session import LOST, own_error
from fedsim.errors import ExecutionError

if TYPE_CHECKING:
    import numpy as np

    from fedsim.inputs.encode import Images, Shard
    from fedsim.models.clip import Clip

WORTH_S = 30.0
"""Less work is done in the process that prepares the data: an actor takes 10 s to load its encoder.
"""
_START_DEADLINE_S = 120.0


class Extractor:
    """Loads an encoder, `models.clip`, once, and encodes one shard after the other.

    `folder` is the base of relative paths, if this node has it.
    """

    def __init__(self, clip: str, folder: str, threads: int, gpus: float) -> None:
        from fedsim.models.clip import load_clip
        from fedsim.process import settle_process

        if Path(folder).is_dir():
            os.chdir(folder)
        settle_process(threads)
        self._device = device_of_actor(gpus)
        self._clip = load_clip(clip, self._device)

    def where(self) -> dict[str, Any]:
        """Process, node and accelerators of this actor."""
        return whereabouts(self._device)

    def encode(self, pixels: bool, images: Images) -> np.ndarray:
        """One shard (see `fedsim.inputs.encode.encode`)."""
        from fedsim.inputs.encode import encode

        return encode(self._clip, pixels, images)


class ExtractionPool:
    """Extractors that live as long as there are shards: a `fedsim.inputs.encode.Extract`.

    The calling process encodes the first shard, which shows how long the others would take there.
    Extractors are started only if that is long enough. They use the calling process's folder and
    number of threads.

    Args:
        placement: How many actors fit, and what each holds.
        worth_s: Seconds of work in one process above which extractors are started.

    Attributes:
        where: Process, node and accelerators of every extractor that has started.
        lost: One line for every extractor that died; the others took over their shards.
    """

    def __init__(self, placement: Placement, worth_s: float = WORTH_S) -> None:
        self._placement, self._worth_s = placement, worth_s
        self.where: list[dict[str, Any]] = []
        self.lost: list[str] = []

    def __call__(
        self, clip: Clip, pixels: bool, shards: Sequence[Shard]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Encode every shard; yields its number and rows as they are finished.

        Raises:
            FedsimError: An image is broken.
            ExecutionError: An extractor failed otherwise.
        """
        from fedsim.inputs.encode import extract_here

        begun = time.monotonic()
        yield from extract_here(clip, pixels, shards[:1])
        took, left = time.monotonic() - begun, deque(shards[1:])
        count = min(self._placement.num_extractors, len(left))
        if count > 1 and took * len(left) >= self._worth_s:
            yield from self._on_actors(count, clip.spec, pixels, left)
        yield from extract_here(clip, pixels, list(left))

    def _on_actors(
        self, count: int, clip: str, pixels: bool, left: deque[Shard]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Encode the shards in `left`; shards that no actor could encode stay there."""
        actors = [self._start(clip) for _ in range(count)]
        starting = {actor.where.remote(): actor for actor in actors}
        busy: dict[Any, tuple[Any, Shard]] = {}
        try:
            while busy or (left and starting):
                # An actor that has not started in time waits for resources of other jobs.
                timeout = None if busy else _START_DEADLINE_S
                answered = finished([*starting, *busy], timeout)
                if not answered:
                    return
                for future in answered:
                    actor, shard = busy.pop(future, (None, None))
                    actor = actor or starting.pop(future)
                    try:
                        result = ray.get(future)
                    except LOST as error:
                        self.lost.append(str(error))
                        if shard is not None:
                            left.appendleft(shard)
                        continue
                    except RayTaskError as error:
                        other = ExecutionError(f"an extractor could not encode: {error}")
                        raise own_error(error) or other from error
                    if left:
                        following = left.popleft()
                        busy[actor.encode.remote(pixels, following.images)] = actor, following
                    if shard is None:
                        self.where.append(result)
                    else:
                        yield shard.number, result
        finally:
            for actor in actors:
                ray.kill(actor)

    def _start(self, clip: str) -> Any:
        import torch

        share = {
            "num_cpus": self._placement.cpus_per_actor,
            "num_gpus": self._placement.gpus_per_actor,
        }
        actor: Any = ray.remote(Extractor).options(scheduling_strategy="SPREAD", **share)
        gpus = self._placement.gpus_per_actor
        return actor.remote(clip, os.getcwd(), torch.get_num_threads(), gpus)
