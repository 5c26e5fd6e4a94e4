"""The checks that need torch, made on the cluster: the driver itself never loads it."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.exceptions import RayTaskError

from fedsim.cluster.client import device_of_actor
from fedsim.cluster.placement import Placement
from fedsim.cluster.session import Stop
from fedsim.config import Experiment
from fedsim.errors import ExecutionError, FedsimError

_LOOK_EVERY_S = 0.2


def preflight_on_ray(experiments: Sequence[Experiment], placement: Placement, stop: Stop) -> None:
    """Run `fedsim.engine.preflight.preflight` as a task with one client's resources.

    Raises:
        FedsimError: Whatever it refuses.
    """
    share = {"num_cpus": placement.cpus_per_actor, "num_gpus": placement.gpus_per_actor}
    task = ray.remote(_preflight).options(max_retries=0, **share)
    future = task.remote(list(experiments), placement.gpus_per_actor)
    while not ray.wait([future], timeout=_LOOK_EVERY_S)[0]:
        stop.check()
    try:
        ray.get(future)
    except RayTaskError as error:
        if isinstance(error.cause, FedsimError):
            raise error.cause from None
        raise ExecutionError(f"the checks before the first run failed: {error}") from error


def _preflight(experiments: list[Experiment], gpus: float) -> None:
    from fedsim.engine.preflight import preflight

    experiments[0].enter()
    preflight(experiments, device_of_actor(gpus))
