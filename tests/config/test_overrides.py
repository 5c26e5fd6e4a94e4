"""Settings from the command line stand in place of those in the file."""

from typing import Any

import pytest

from fedsim.config.study_file import parse_study
from fedsim.errors import ConfigError
from fedsim.methods import METHODS
from tests.config.conftest import Load, problems

TWO = """
methods:
  cachefl: {train.lr: 0.5, train: {momentum: 0.3}}
  fedavg_head: {}
train: {lr: 0.1, rounds: 3}
partitions:
  - {scheme: dirichlet_label, dirichlet_alpha: 0.1, num_clients: 4}
  - {scheme: iid}
seeds: [0, 1]
grid: {train.batch_size: [8, 16]}
"""


def test_seed_and_method_choose_one(load: Load):
    found = load(TWO, "seed=5", "method=cachefl").experiments(METHODS)
    assert {(e.method, e.seed, e.train.lr) for e in found} == {("cachefl", 5, 0.5)}


def test_a_method_outside_the_study_may_be_asked_for(load: Load):
    assert {e.method for e in load(TWO, "method=zero_shot").experiments(METHODS)} == {"zero_shot"}


def test_lists_are_yaml(load: Load):
    study = load(TWO, "seeds=[3, 4]", "report.targets=[0.25]")
    assert study.seeds == (3, 4)
    assert study.experiments(METHODS)[0].report.targets == (0.25,)


def test_an_override_beats_the_methods_own_settings(load: Load):
    found = load(TWO, "train.lr=1e-2", "train.momentum=0.7").experiments(METHODS)
    assert {(e.method, e.train.lr, e.train.momentum) for e in found} == {
        ("cachefl", 0.01, 0.7),
        ("fedavg_head", 0.01, 0.7),
    }


def test_an_override_replaces_a_grid_axis(load: Load):
    study = load(TWO, "train.batch_size=4")
    found = study.experiments(METHODS)
    assert {e.train.batch_size for e in found} == {4}
    assert len(found) == 2 * 2 * 2


def test_methods_that_are_left_out_are_not_tuned(load: Load):
    text = "methods: [cachefl, zero_shot]\ntune: {grid: {cachefl: {train.lr: [0.1]}}}"
    assert load(text, "method=zero_shot").tune.grid == {}
    assert set(load(text, "methods=[cachefl]").tune.grid) == {"cachefl"}
    typo = load(text.replace("{cachefl:", "{cachefk:"), "method=zero_shot")
    assert set(typo.tune.grid) == {"cachefk"}  # for --tune to refuse


def test_a_whole_grid_replaces_the_file_s(load: Load):
    found = load(TWO, "grid={train.lr: [0.1, 0.2], noise.labels: [0.5]}").experiments(METHODS)
    assert {(e.train.lr, e.noise.labels) for e in found} == {(0.1, 0.5), (0.2, 0.5)}
    with pytest.raises(ConfigError, match="grid"):
        load(TWO, "grid=3")


def test_setting_the_partition_replaces_its_axis(load: Load):
    found = load(TWO, "partition.dirichlet_alpha=0.7").experiments(METHODS)
    assert {(e.partition.label, e.partition.num_clients) for e in found} == {
        ("dirichlet_label 0.7", 4)  # the first split of the file, changed
    }
    found = load(TWO, "partition.scheme=iid").experiments(METHODS)
    assert {(e.partition.label, e.partition.num_clients) for e in found} == {("iid", 10)}


def test_a_whole_section_as_override_is_its_settings_one_by_one(load: Load):
    found = load(TWO, "train={lr: 0.01, momentum: 0.7}").experiments(METHODS)
    shown = {(e.train.lr, e.train.momentum, e.train.rounds) for e in found}
    assert shown == {(0.01, 0.7, 3)}  # what was not given stays


def test_overrides_leave_the_callers_mapping_alone():
    tree: dict[str, Any] = {
        "study": "s",
        "methods": {"cachefl": {"train.lr": 0.5, "train": {"lr": 0.4}}},
        "partitions": [{"scheme": "iid"}],
        "train": {"lr": 0.1},
    }
    before = repr(tree)
    parse_study(tree, ["train.lr=9.0", "partition.num_clients=3", "method=cachefl"])
    assert repr(tree) == before


@pytest.mark.parametrize("text", ["train.lr", "=3", "", "train.lr=[1,", "train.lr={a: 1, a: 2}"])
def test_overrides_that_are_none_are_refused(load: Load, text: str):
    with pytest.raises(ConfigError, match="override"):
        load(TWO, text)


def test_an_override_cannot_go_through_a_value(load: Load):
    with pytest.raises(ConfigError, match=r"train\.lr\.x: 'lr' holds a value, not a section"):
        load(TWO, "train.lr.x=1")


def test_unknown_overrides_get_a_hint(load: Load):
    found = problems(lambda: load(TWO, "train.lrr=1", "sedes=[1]").experiments(METHODS))
    assert any("did you mean 'seeds'" in problem for problem in found)
    found = problems(lambda: load(TWO, "train.lrr=1").experiments(METHODS))
    assert any("'train.lrr'; did you mean 'lr'" in problem for problem in found)
