"""cluster.yaml is a launcher file that the installed Ray accepts."""

import copy
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import blocks

ROOT = Path(__file__).parents[2]


def plain(line: str) -> str:
    """A command without its comment and without needless spaces."""
    return shlex.join(shlex.split(line, comments=True))


@pytest.fixture(scope="module")
def commands() -> list[str]:
    """Those in the comment that the file starts with."""
    head = (ROOT / "cluster.yaml").read_text().partition("\n\n")[0]
    lines = re.sub(r"^# ?", "", head, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [plain(line) for line in lines if line.startswith("  ")]


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


def test_all_workers_are_there_from_the_start(prepared: dict):
    """Runs are placed on living nodes: nothing would ask for a worker that is not there."""
    count = prepared["max_workers"]
    assert count >= 1
    assert prepared["available_node_types"]["gpu"]["min_workers"] == count


def test_results_go_where_every_node_can_write(cluster: dict, commands: list[str]):
    (sweep,) = (command for command in commands if "fedsim sweep" in command)
    (output,) = re.findall(r"output=(\S+?)[\s']", sweep)
    assert output.startswith("s3://")
    assert f"fedsim report {output}/my_study" in commands
    for name, node in cluster["available_node_types"].items():
        if name != cluster["head_node_type"]:  # the head gets a profile from Ray
            assert re.fullmatch(
                r"arn:aws:iam::\d{12}:instance-profile/[\w-]+",
                node["node_config"]["IamInstanceProfile"]["Arn"],
            )


def test_commands_use_the_cluster_and_not_a_ray_of_their_own(cluster: dict, commands: list[str]):
    (target,) = (path for path, source in cluster["file_mounts"].items() if source == ".")
    there = [shlex.split(command)[-1] for command in commands if command.startswith("ray exec")]
    assert len(there) == 2
    for command in there:
        assert command.startswith(f"cd {Path(target).name} && fedsim ")
        assert "--address auto" in command
    (upload,) = (command for command in commands if command.startswith("ray rsync-up"))
    assert Path(upload.split()[-1]).parent == Path(target)


def test_the_page_shows_the_same_commands(commands: list[str]):
    page = ROOT / "docs" / "how-to" / "clusters.md"
    (block,) = (block for block in blocks(page) if "ray up" in block.text)
    study = [("experiments/quickstart.yaml", "my_study.yaml"), ("quickstart", "my_study")]
    shown = block.text.replace("\\\n", " ")
    for there, here in study:
        shown = shown.replace(there, here)
    lines = [plain(line) for line in shown.splitlines()]
    assert len(lines) >= 5
    assert [command for command in commands if command in lines] == lines


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
