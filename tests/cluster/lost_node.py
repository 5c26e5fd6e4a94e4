"""Run as a process: a Ray cluster of real raylets, of which one is killed in mid-round, twice.

The first time nobody takes its place; the second time a node joins while the others are still at
the same round. Prints one JSON object; `test_lost_node.py` says what it must be.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim.cluster.session import nodes, session

from ray.cluster_utils import Cluster  # isort: skip

DEADLINE_S = 120.0
ROUND = 2
"""In which a node is lost."""

METHOD = '''
import time
from pathlib import Path

import ray

from fedsim.methods.fedavg_head import FedAvgHead

HERE = Path(__file__).parent


def here(name):
    if ray.is_initialized():
        (HERE / f"{name}-{ray.get_runtime_context().get_node_id()}").touch()


class Held(FedAvgHead):
    """Says which nodes server and clients are on; clients wait while there is a file `hold`."""

    def setup(self, task, rng):
        here("server")
        return super().setup(task, rng)

    def client_update(self, message, batches, client_state, rng):
        here("at")
        while (HERE / "hold").exists():
            time.sleep(0.02)
        return super().client_update(message, batches, client_state, rng)
'''
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 60_000,
}
"""Who refuses to answer is soon taken for dead; who is only slow is not."""


def until(happened: Callable[[], Any], what: str) -> None:
    """Wait for something to happen elsewhere."""
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def run(study: Path, folder: Path, cluster: Cluster, joins: bool) -> dict[str, Any]:
    """A run that loses a node while its clients are at a round, and what became of it.

    The others go on when it is dead, or when clients train on a node that has joined.
    """
    from fedsim.driver.launch import Launcher
    from fedsim.driver.plan import study_lock
    from tests.integration.studies import experiments

    here, hold = study.parent, study.parent / "hold"
    todo = experiments(study, "resources.num_actors=2")
    found: dict[str, Any] = {"offered": sorted(node.cpus for node in nodes()), "error": ""}

    def hear(run_id: str, seen: dict[str, Any]) -> None:
        if seen["round"] == ROUND - 1:  # the next one begins when this returns
            for file in here.glob("at-*"):
                file.unlink()
            hold.touch()

    def compute() -> None:
        try:
            with study_lock(folder), Launcher(folder) as launcher:
                launcher.run(todo, hear)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"

    def trains(node: Any) -> bool:
        return hold.exists() and (here / f"at-{node.node_id}").exists()

    thread = threading.Thread(target=compute)  # Ray starts nodes on the main thread only
    thread.start()
    try:
        workers = sorted(cluster.worker_nodes, key=lambda node: node.node_id)
        until(lambda: found["error"] or all(map(trains, workers)), "both nodes are at the round")
        cluster.remove_node(workers[-1], allow_graceful=False)
        if joins:
            joined = cluster.add_node(num_cpus=1)
            until(lambda: found["error"] or trains(joined), "who joined is at the round")
            found["joined"] = joined.node_id
    finally:
        hold.unlink(missing_ok=True)
        thread.join()
    return found


def main(folder: Path) -> None:
    from tests.integration.studies import write_study

    (folder / "held.py").write_text(METHOD)
    study = write_study(folder, methods={"held": {"use": str(folder / "held.py")}})
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    found: dict[str, Any] = {}
    with session(cluster.address):
        found["alone"] = run(study, folder / "alone", cluster, joins=False)
        cluster.add_node(num_cpus=1)
        found["joined"] = run(study, folder / "joined", cluster, joins=True)
    found["head"] = cluster.head_node.node_id
    found["servers"] = sorted({path.name for path in folder.glob("server-*")})
    cluster.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
