"""The checks that need torch, and the features they compute, on the cluster, not in the driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from fedsim.cluster.client import device_of_actor
from fedsim.cluster.encoding import WORTH_S, ExtractionPool
from fedsim.cluster.placement import Placement
from fedsim.cluster.session import Stop, own_error
from fedsim.cluster.share_arrays import share_entries
from fedsim.config import Experiment
from fedsim.errors import ExecutionError

_LOOK_EVERY_S = 0.2


class Preflight:
    """Runs `fedsim.inputs.preflight.preflight`, and reports its progress meanwhile.

    Args:
        placement: Of a run; this actor holds one client's GPU fraction.
        worth_s: See `ExtractionPool`.
    """

    def __init__(self, placement: Placement, worth_s: float = WORTH_S) -> None:
        self.pool = ExtractionPool(placement, worth_s)
        self._device = device_of_actor(placement.gpus_per_actor)
        self._seen: tuple[int, int] | None = None

    def run(self, experiments: list[Experiment]) -> None:
        """Check all; images are encoded on the way, and their features copied to every node."""
        from fedsim.inputs.preflight import preflight

        experiments[0].enter()
        share_entries(preflight(experiments, self._device, self.pool, self._hear))

    def seen(self) -> tuple[int, int] | None:
        """Images encoded so far, and all images of the data being prepared; None before."""
        return self._seen

    def _hear(self, encoded: int, images: int) -> None:
        self._seen = encoded, images


def preflight_on_ray(
    experiments: Sequence[Experiment],
    placement: Placement,
    stop: Stop,
    progress: Callable[[int, int], None] = lambda encoded, images: None,
) -> None:
    """Check experiments in an actor with one client's GPU fraction.

    `progress` is called with the number of encoded images, and of all. Images that were encoded
    before a stop are kept.

    Raises:
        FedsimError: Whatever is refused.
        KeyboardInterrupt: A stop was requested.
    """
    # Two threads: one works, one answers. No CPU: on CPUs the extractors take all of them.
    options = {"num_cpus": 0, "num_gpus": placement.gpus_per_actor, "max_concurrency": 2}
    kind: Any = ray.remote(Preflight).options(**options)
    actor = kind.remote(placement)
    try:
        future, asked = actor.run.remote(list(experiments)), actor.seen.remote()
        last = None
        while not stop.wait(future, _LOOK_EVERY_S):
            if ray.wait([asked], timeout=0)[0]:
                seen, asked = ray.get(asked), actor.seen.remote()
                if seen is not None and seen != last:
                    progress(*seen)
                    last = seen
        ray.get(future)
        seen = ray.get(actor.seen.remote())  # what came after the last look
        if seen is not None and seen != last:
            progress(*seen)
    except RayError as error:
        other = ExecutionError(f"the checks before the first run failed: {error}")
        raise own_error(error) or other from error
    finally:
        ray.kill(actor)
