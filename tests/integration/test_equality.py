"""One computation, wherever it runs: in-process, on one client actor, on four."""

from pathlib import Path

import pytest

from fedsim.config import Experiment
from fedsim.results.study import Study
from fedsim.results.tables.equality import equal_results
from tests.integration.studies import experiments, local, run_all, write_study

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

DIGITS = {
    "study": "digits",
    "data": {"name": "digits", "max_train_samples": 300},
    "models": {"clip": "tiny-clip", "generator": None},
    "train": {"rounds": 2, "batch_size": 16, "lr": 0.01},
    "methods": {"fedavg_finetune": None, "fedavg_head": {"train.augment_views": 3}},
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Methods on features, a network that is trained, and a head on views of images."""
    features, digits = tmp_path_factory.mktemp("features"), tmp_path_factory.mktemp("digits")
    methods = {
        "zero_shot": None,
        "fedavg_head": None,
        "cache_random": {"use": "cachefl", "cache.init": "random"},
        "cache_text": {"use": "cachefl", "cache.init": "text", "train.participation": 0.6},
    }
    return [write_study(features, methods=methods), write_study(digits, **DIGITS)]


@pytest.fixture(scope="module")
def reference(studies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("local")
    for path in studies:
        study = local(path, folder)
    return study


def all_of(studies: list[Path], *overrides: str) -> list[Experiment]:
    return [e for path in studies for e in experiments(path, *overrides)]


@pytest.mark.parametrize(
    "resources",
    [
        ["resources.num_actors=1", "resources.cpus_per_client=4"],
        ["resources.num_actors=4", "resources.cpus_per_client=1"],
    ],
    ids=["1 actor", "4 actors"],
)
def test_ray_computes_the_same_bits_as_one_process(
    studies: list[Path], reference: Study, tmp_path: Path, resources: list[str], ray_cluster: None
):
    todo = all_of(studies, *resources)
    assert {e.run_id for e in todo} == set(reference.runs.run_id)
    study = run_all(todo, tmp_path)
    assert equal_results(reference, study) == []
    assert set(study.runs.backend) == {"ray"}
    assert set(study.runs.num_actors) == {todo[0].resources.num_actors}
    assert set(reference.runs.backend) == {"local"}
