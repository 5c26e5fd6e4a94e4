"""Run as a process: a Ray cluster of two real raylets with logical GPUs, and what lands where.

Prints one JSON object; `test_gpu_fractions.py` says what it must be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fedsim.cluster.session import nodes, session

import ray  # isort: skip  # after fedsim.cluster.session, which settles Ray's settings
from ray.cluster_utils import Cluster  # isort: skip
from ray.util.placement_group import placement_group, remove_placement_group  # isort: skip


def pool_of(config: Any) -> list[dict[str, Any]]:
    """Where the client actors of a run are."""
    from fedsim.cluster.placement import place
    from fedsim.cluster.pool import ActorPool

    placement = place(config, nodes())
    group = placement_group([b for b in (placement.head, *placement.bundles) if b], "PACK")
    ray.get(group.ready())
    pool = ActorPool(placement, group)
    where = pool.where()
    pool.close()
    remove_placement_group(group)
    return where


def main(folder: Path) -> None:
    from fedsim.cluster.placement import place
    from fedsim.errors import PlacementError
    from tests.integration.studies import experiments, run_all, write_study

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2})
    cluster.add_node(num_cpus=2)
    study = write_study(folder)
    found: dict[str, Any] = {}
    with session(cluster.address):
        found["nodes"] = [(node.cpus, node.gpus) for node in nodes()]

        def config(*resources: str) -> Any:
            return experiments(study, "method=fedavg_head", *resources)[0]

        quarters = "resources.gpus_per_client=0.25"
        found["two quarters"] = pool_of(config("resources.num_actors=2", quarters))
        halves = "resources.gpus_per_client=0.5"
        found["three halves"] = pool_of(config("resources.num_actors=3", halves))
        try:
            place(config("resources.clients_per_actor=1", halves), nodes())
        except PlacementError as error:
            found["refused"] = str(error)
        on_cpus = ["resources.gpus_per_client=0", "resources.cpus_per_client=2"]
        found["on both nodes"] = pool_of(config("resources.num_actors=3", *on_cpus))
        run_all(experiments(study, "resources.num_actors=2", *on_cpus), folder / "ray")
    cluster.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
