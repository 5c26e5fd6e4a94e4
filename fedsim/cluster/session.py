"""Connecting to Ray quietly, and disconnecting."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# Ray and Tune read these when they are imported. fedsim writes tables, checkpoints and progress
# itself, so Tune must not write snapshots, loggers' files or console reports. Snapshots would also
# keep every trial's state in memory. Trials stay in the driver's folder, the base of a study's
# relative paths. `tests/cluster/test_sweep.py` shows what Tune does without these settings.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import (  # noqa: E402
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from fedsim.cluster.gpu_memory import smallest_gpu_bytes  # noqa: E402
from fedsim.cluster.placement import Node  # noqa: E402
from fedsim.errors import ExecutionError, FedsimError  # noqa: E402
from fedsim.interrupt import EXIT_CODE, check, quiet_exit  # noqa: E402

LOST = (RayActorError, ObjectLostError, OutOfMemoryError)
"""Ray's errors for a dead actor, or an answer lost with its node. Another actor can do the job."""
_KNOCK_S = 10.0
_LOOK_EVERY_S = 0.2
_MEMORY_DEADLINE_S = 60.0


class Stop:
    """A request to stop, by SIGINT or SIGTERM.

    An exception from a handler would be lost inside Ray's own waits, so loops look at `requested`.
    If no loop has done so within `GRACE_S`, the process ends; a second signal ends it at once.
    `leave` is called first in both cases.

    Attributes:
        requested: Name of the signal, or None.
        nudge: Called when a stop is requested, to wake up a wait.
        leave: Called before the process is ended by force.
    """

    GRACE_S = 4.0

    def __init__(self) -> None:
        self.requested: str | None = None
        self.nudge: Callable[[], None] = lambda: None
        self.leave: Callable[[], None] = lambda: None

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if a stop was requested."""
        if self.requested:
            raise KeyboardInterrupt(self.requested)

    def wait(self, future: Any, deadline_s: float = math.inf) -> bool:
        """Whether a call to Ray has finished in time; raises `KeyboardInterrupt` on a stop."""
        until = time.monotonic() + deadline_s
        while not ray.wait([future], timeout=_LOOK_EVERY_S)[0]:
            self.check()
            if time.monotonic() > until:
                return False
        self.check()
        return True

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within this block the two signals request a stop; does nothing off the main thread."""
        try:
            before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._end()
        self.requested = signal.Signals(number).name
        timer = threading.Timer(self.GRACE_S, self._end)
        timer.daemon = True
        timer.start()
        self.nudge()

    def _end(self) -> None:
        self.leave()
        quiet_exit(EXIT_CODE)


@contextmanager
def session(address: str | None = None) -> Iterator[Stop]:
    """A connection to Ray: the given cluster, the one in `$RAY_ADDRESS`, or one started here.

    A cluster started here ends with this block, and with this process however it dies. Must be
    entered on the main thread, because Ray ties its processes to the thread that started them.

    Yields:
        The user's request to stop.

    Raises:
        ExecutionError: If the cluster cannot be reached.
    """
    started = not ray.is_initialized()
    if started:
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            _knock(address)
            ray.init(
                # Without an address Ray would look for clusters of other users, and for dead ones.
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except (RayError, OSError, RuntimeError, ValueError) as error:
            raise ExecutionError(
                f"cannot {'reach the Ray cluster at ' + address if address else 'start Ray'}: "
                f"{error}; `fedsim doctor` checks the machine"
            ) from error
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    stop = Stop()
    try:
        with stop.handled():  # after ray.init, which installs handlers of its own
            check()  # an earlier Ctrl+C may have got lost
            yield stop
    finally:
        if started:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Fail at once if nothing listens at the address; Ray itself tries for minutes.

    Raises:
        OSError: There is no answer at `host:port`.
    """
    found = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address or "")
    if found:
        socket.create_connection((found[1], int(found[2])), _KNOCK_S).close()


def nodes(gpu_memory: bool = False) -> list[Node]:
    """The machines of the connected cluster.

    Args:
        gpu_memory: Also ask those with GPUs for their memory, which takes a task on each.
    """
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    with_gpus = [node for node, has in alive.items() if has.get("GPU")] if gpu_memory else []
    memory = _gpu_memory(with_gpus) if with_gpus else {}
    return [Node(has.get("CPU", 0), has.get("GPU", 0), memory.get(n)) for n, has in alive.items()]


def _gpu_memory(node_ids: list[str]) -> dict[str, int | None]:
    """Bytes of the smallest GPU of each node that answers in time; None if it does not know."""
    asked = {on_node(node, smallest_gpu_bytes).remote(): node for node in node_ids}
    told, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_MEMORY_DEADLINE_S)
    found = {}
    for future in told:
        with suppress(RayError):  # the first round reports a node that cannot run tasks
            found[asked[future]] = ray.get(future)
    return found


def on_node(node_id: str | None, function: Any, num_gpus: float = 0) -> Any:
    """A function as a task without CPUs, on the given node or on any; it is not tried twice."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False) if node_id else "DEFAULT"
    options = {"num_cpus": 0, "num_gpus": num_gpus, "max_retries": 0}
    return ray.remote(function).options(scheduling_strategy=strategy, **options)


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """The driver's node, where the loss of an essential actor costs nothing more.

    The run ends with its driver anyway. Without this, Ray puts an actor that holds no resources on
    any node.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def own_error(error: RayError) -> FedsimError | None:
    """The error of fedsim's own that a task or an actor raised, if it is one."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, FedsimError) else None
