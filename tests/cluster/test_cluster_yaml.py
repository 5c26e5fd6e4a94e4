"""cluster.yaml is a launcher file that the installed Ray accepts."""

import copy
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(cluster: dict) -> dict:
    """The file as `ray up` completes it before it calls the cloud provider."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(copy.deepcopy(cluster))


def test_it_satisfies_rays_schema(prepared: dict):
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def test_every_key_is_known_to_ray(cluster: dict, prepared: dict):
    from ray.autoscaler._private.util import validate_config

    misspelt = copy.deepcopy(prepared) | {"idle_timeout_minuets": 5}
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate_config(misspelt)
    assert cluster.keys() <= prepared.keys()


def test_the_head_is_on_demand_and_every_worker_has_gpus_on_spot(prepared: dict):
    nodes = dict(prepared["available_node_types"])
    head = nodes.pop(prepared["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["max_workers"] == 0
    assert nodes
    for node in nodes.values():
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert node["node_config"]["InstanceType"].startswith(("g", "p"))
        assert node["max_workers"] == prepared["max_workers"]


def test_all_nodes_run_the_ray_version_that_fedsim_is_tested_with(cluster: dict):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for role in ("head_image", "worker_image"):
        assert re.search(r":(.+?)-py", cluster["docker"][role])[1] == pinned[1]


def test_nothing_listens_beyond_the_cluster(cluster: dict):
    assert "security_group" not in cluster["provider"]  # Ray's own lets in SSH only
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


def test_it_installs_this_checkout_with_the_tested_versions(cluster: dict):
    (target,) = (path for path, source in cluster["file_mounts"].items() if source == ".")
    assert f"cd {target} && pip install -c constraints.txt" in cluster["setup_commands"][0]
    assert {".git", ".venv", "runs"} <= set(cluster["rsync_exclude"])
