"""Run as a process: a Ray cluster of two real raylets with logical GPUs, and what lands where.

At the end a third joins, whose driver does not answer.

Prints one JSON object; `test_gpu_fractions.py` says what it must be.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from fedsim.cluster.session import nodes, session
from tests.cluster.drivers import times_asked, write_nvidia_smi

import ray  # isort: skip  # after fedsim.cluster.session, which settles Ray's settings
from ray.cluster_utils import Cluster  # isort: skip
from ray.util.placement_group import placement_group, remove_placement_group  # isort: skip


def pool_of(config: Any) -> list[dict[str, Any]]:
    """Where the client actors of a run are."""
    from fedsim.cluster.placement import place_each, plans_memory
    from fedsim.cluster.pool import ActorPool

    (placement,) = place_each([config], nodes(plans_memory([config.resources])))
    group = placement_group([b for b in (placement.head, *placement.bundles) if b], "PACK")
    ray.get(group.ready())
    pool = ActorPool(placement, group)
    where = pool.where()
    pool.close()
    remove_placement_group(group)
    return where


def refusal(action: Callable[[], object]) -> str:
    """Why there is no room for it; empty if there is."""
    from fedsim.errors import PlacementError

    try:
        action()
    except PlacementError as error:
        return str(error)
    return ""


def memory_of(config: Any, folder: Path, driver: Path, address: str) -> dict[str, Any]:
    """What the nodes' GPUs have, and what follows from it."""
    from rich.console import Console

    from fedsim.cli.dry_run import describe
    from tests.integration.studies import run_all

    halves, found = "resources.gpus_per_client=0.5", dict[str, Any]()
    found["asked without need"] = times_asked(driver)
    found["nodes"] = [(n.cpus, n.gpus, n.gpu_memory_bytes) for n in nodes(gpu_memory=True)]
    found["asked"] = times_asked(driver)

    needs, quiet = "resources.gpu_memory_bytes_per_client={}".format, Console(file=io.StringIO())
    too_much = [config(), config(halves, needs(12 * 2**30))]
    found["refused"] = refusal(lambda: run_all(too_much, folder / "refused"))
    found["written"] = (folder / "refused").exists()
    found["refused dry"] = refusal(lambda: describe(too_much, folder / "dry", address, quiet))

    found["thirds"] = pool_of(config("resources.num_actors=2", needs(7 * 2**30)))
    return found


def main(folder: Path) -> None:
    from fedsim.cluster import doctor
    from fedsim.cluster.placement import place_each
    from tests.integration.studies import experiments, run_all, write_study

    path = os.environ["PATH"]
    driver = write_nvidia_smi(folder / "driver", "printf '81559\n24564\n'")
    broken = write_nvidia_smi(folder / "broken", "exit 9")
    os.environ["PATH"] = f"{driver}{os.pathsep}{path}"
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
        every = config("resources.clients_per_actor=1", halves)
        found["refused"] = refusal(lambda: place_each([every], nodes()))
        on_cpus = ["resources.gpus_per_client=0", "resources.cpus_per_client=2"]
        found["on both nodes"] = pool_of(config("resources.num_actors=3", *on_cpus))
        run_all(experiments(study, "resources.num_actors=2", *on_cpus), folder / "ray")

        os.chdir(folder)
        with redirect_stdout(io.StringIO()) as said:
            doctor.examine(cluster.address)
        found["doctor"] = said.getvalue().splitlines()
        found["token left"] = [str(path) for path in folder.glob(".fedsim-doctor-*")]

        found["memory"] = memory_of(config, folder, driver, cluster.address)
        silent = {"PATH": f"{broken}{os.pathsep}{path}"}
        cluster.add_node(num_cpus=1, num_gpus=1, env_vars=silent)
        needs = config(f"resources.gpu_memory_bytes_per_client={7 * 2**30}")
        (silent_too,) = place_each([needs], nodes(gpu_memory=True))
        found["with a silent node"] = silent_too.arithmetic
        found["silent node asked"] = times_asked(broken)
    cluster.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
