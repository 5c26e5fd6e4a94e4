"""What a YAML file may hold, and how a broken one is refused."""

from pathlib import Path

import pytest

from fedsim.config.study_file import load_study
from fedsim.errors import ConfigError
from fedsim.methods import METHODS
from tests.config.conftest import Load, only, problems


def test_a_missing_file_names_its_neighbour(load: Load, tmp_path: Path):
    load("methods: [cachefl]")
    with pytest.raises(ConfigError, match="did you mean 'trial.yaml'"):
        load_study(tmp_path / "trail.yaml")
    with pytest.raises(ConfigError, match="no study file"):
        load_study(tmp_path / "nowhere" / "trial.yaml")


def test_keys_given_twice_are_refused(load: Load):
    with pytest.raises(ConfigError, match=r"the key 'lr' is given twice.*line 2"):
        load("methods: [cachefl]\ntrain: {lr: 0.1, rounds: 2, lr: 0.2}")
    with pytest.raises(ConfigError, match="'methods' is given twice"):
        load("methods: [cachefl]\nmethods: [fedavg_head]")


def test_yaml_anchors_and_merges_work(load: Load):
    study = load(
        """
        methods:
          cachefl: &slow {train.lr: 0.1, train.rounds: 7}
          fedavg_head: {<<: *slow, train.lr: 0.2}
        """
    )
    found = [(e.train.lr, e.train.rounds) for e in study.experiments(METHODS)]
    assert found == [(0.1, 7), (0.2, 7)]


@pytest.mark.parametrize(
    "text", ["[1, 2]", "", "{a: [", "? [a, b]\n: 3", "\x00", "methods: !!python/object:os.system x"]
)
def test_what_is_no_mapping_or_no_yaml_is_refused(load: Load, text: str):
    with pytest.raises(ConfigError, match=r"trial\.yaml"):
        load(text)


@pytest.mark.parametrize("written", ["1e-3", "1E-3", ".001", "0.001", "1.e-3", "+1e-3"])
def test_numbers_may_be_written_as_people_do(load: Load, written: str):
    study = load(f"methods: [cachefl]\ntrain: {{lr: {written}}}")
    assert only(study).train.lr == 0.001


def test_text_that_begins_like_a_number_stays_text(load: Load):
    study = load("methods: [cachefl]\ndata: {name: 1e-3.npz, path: 10_000/x}")
    assert (only(study).data.name, only(study).data.path) == ("1e-3.npz", "10_000/x")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_numbers_that_are_none_are_refused(load: Load, value: str):
    found = problems(
        lambda: load(f"methods: [cachefl]\ntrain: {{lr: {value}}}").experiments(METHODS)
    )
    assert "train.lr" in found[0]
