"""Study files: what is refused and how, overrides, axes and names."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config.sections import TrainConfig
from fedsim.config.study_file import parse_study
from fedsim.config.tune import TuneConfig
from fedsim.errors import ConfigError
from fedsim.methods import METHODS
from tests.config.conftest import Load, only, problems


def test_the_shortest_study_is_a_list_of_methods(load: Load):
    study = load("methods: [cachefl, zero_shot]")
    assert study.study == "trial"  # the file's name
    assert study.folder == Path("runs/trial")
    first, second = study.experiments(METHODS)
    assert (first.method, first.use, first.phase, first.seed) == ("cachefl", "cachefl", "final", 0)
    assert second.method == "zero_shot"


def test_axes_are_crossed_in_the_order_they_are_read(load: Load):
    study = load(
        """
        methods: {cachefl: {train.lr: 0.5}, fedavg_head: {}}
        partitions:
          - {scheme: iid}
          - {scheme: dirichlet_label, dirichlet_alpha: 0.1}
        grid: {train.local_epochs: [1, 5]}
        seeds: [0, 7]
        partition: {num_clients: 20}
        """
    )
    found = study.experiments(METHODS)
    assert len(found) == len({e.run_id for e in found}) == 16
    assert {e.method: e.train.lr for e in found} == {"cachefl": 0.5, "fedavg_head": 0.01}
    assert {e.partition.num_clients for e in found} == {20}
    shown = [(e.method, e.train.local_epochs, e.seed, e.partition.label) for e in found[:4]]
    assert shown == [
        ("cachefl", 1, 0, "iid"),
        ("cachefl", 1, 0, "dirichlet_label 0.1"),
        ("cachefl", 1, 7, "iid"),
        ("cachefl", 1, 7, "dirichlet_label 0.1"),
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("methods: [cachefl]\ntrian: {lr: 1.0}", "unknown setting 'trian'; did you mean 'train'?"),
        (
            "methods: [cachefl]\noptions: {ridge: 1}",
            "unknown setting 'options'; a method's options are given as methods.NAME.options",
        ),
        ("methods: [cachefl]\nseed: [1]", "unknown setting 'seed'; did you mean 'seeds'?"),
        (
            "methods: [cachefl]\ntrain: {learning_rat: 1.0, batchsize: 3}",
            "unknown setting 'train.batchsize'; did you mean 'batch_size'?",
        ),
        (
            "methods: {cachefl: {cache.sharpnes: 5.0}}",
            "unknown setting 'cache.sharpnes'; did you mean 'sharpness'?",
        ),
        (
            "methods: [cachefl]\ngrid: {train.momentun: [0.9]}",
            "unknown setting 'train.momentun'; did you mean 'momentum'?",
        ),
        (
            "methods: [cachefl]\npartitions: [{scheme: iid, num_client: 3}]",
            "unknown setting 'partition.num_client'; did you mean 'num_clients'?",
        ),
        (
            "methods: [cachefl]\ntune: {extension: 1, grid: {cachefl: {train.lr: [1.0, 2.0]}}}",
            "unknown setting 'tune.extension'; did you mean 'extensions'?",
        ),
        (
            "methods: [fedavg_haed]",
            "methods.fedavg_haed: unknown method 'fedavg_haed'; did you mean 'fedavg_head'?",
        ),
        ("methods: {a: {use: cachfl}}", "did you mean 'cachefl'?"),
    ],
)
def test_unknown_names_get_a_hint_at_every_depth(load: Load, text: str, hint: str):
    found = problems(lambda: load(text).experiments(METHODS))
    assert any(hint in problem for problem in found), found
    assert all("trial.yaml: " in problem for problem in found)


def test_empty_sections_are_their_defaults(load: Load):
    study = load("methods: {cachefl: }\ntrain:\npartitions:\ngrid:\ntune:\nseeds:")
    assert only(study).train == TrainConfig()
    assert study.tune == TuneConfig()


def test_tuning_grids_are_read(load: Load):
    study = load("methods: [cachefl]\ntune: {grid: {cachefl: {train.lr: [1e-2, 0.1]}}}")
    assert study.tune.grid == {"cachefl": {"train.lr": (0.01, 0.1)}}
    with pytest.raises(ConfigError, match="tune.grid.cachefl.train.lr"):
        load("methods: [cachefl]\ntune: {grid: {cachefl: {train.lr: []}}}")


def test_all_problems_are_told_at_once(load: Load):
    found = problems(
        lambda: load(
            """
            methods: {cachefl: {train.lr: -1.0}, nosuch: {}}
            train: {rounds: many, batch_size: 0}
            partitions: [{scheme: dirichlet_label}]
            cache: {init: generatd}
            """
        ).experiments(METHODS)
    )
    text = "\n".join(found)
    for part in ("train.lr", "train.rounds", "train.batch_size", "dirichlet_alpha", "cache.init"):
        assert part in text, part
    assert "unknown method 'nosuch'" in text
    assert "many" in text  # what was given is shown
    assert len(found) == len(set(found))


def test_problems_of_the_axes_and_of_overrides_are_told_together():
    tree = {"study": "a b", "methods": {}, "seeds": [], "rounds": 3}
    found = problems(lambda: parse_study(tree, ["train.lr"]))
    text = "\n".join(found)
    assert all(part in text for part in ("train.lr=0.1", "study", "methods", "seeds", "'rounds'"))


# --- names and axes that cannot be ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", "../up", "a b", "", ".hidden", "-x"])
def test_names_of_methods_can_be_file_names(name: str):
    tree = {"study": "s", "methods": {name: {"use": "fedavg_head"}}}
    assert any("method" in p for p in problems(lambda: parse_study(tree).experiments(METHODS)))


@pytest.mark.parametrize("name", ["a/b", "../up", "a b", "", "/abs"])
def test_names_of_studies_can_be_folder_names(name: str):
    assert problems(lambda: parse_study({"study": name, "methods": ["cachefl"]}))


@pytest.mark.parametrize(
    "axes",
    [
        {"grid": {"train.lr": []}},
        {"seeds": [0, 1, 0]},
        {"seeds": []},
        {"methods": []},
        {"methods": ["cachefl", "cachefl"]},
        {"partitions": [{"scheme": "iid"}, {"scheme": "iid"}]},
        {"grid": {"train.lr": [0.1, 0.1]}},
    ],
)
def test_empty_axes_and_runs_given_twice_are_refused(axes: dict[str, Any]):
    tree = {"study": "s", "methods": ["cachefl"], **axes}
    assert problems(lambda: parse_study(tree).experiments(METHODS))


@pytest.mark.parametrize("key", ["method", "study", "output", "phase", "seed"])
def test_a_methods_settings_cannot_change_what_run_it_is(key: str):
    tree = {"study": "s", "methods": {"cachefl": {key: 3 if key == "seed" else "tune"}}}
    found = problems(lambda: parse_study(tree).experiments(METHODS))
    assert any(f"methods.cachefl.{key}" in problem for problem in found)


# --- what only some names may mean ---------------------------------------------------------------


def test_the_dual_form_needs_sgd_on_keys():
    cell = {"use": "cachefl", "cache.form": "dual", "train.optimizer": "adamw"}
    tree = {"study": "s", "methods": {"mine": cell}}
    found = problems(lambda: parse_study(tree).experiments(METHODS))
    assert "set train.optimizer to sgd, or cache.form to direct" in found[0]
    cell = {"use": "cachefl", "cache.form": "dual", "cache.trainable": "keys_values"}
    found = problems(lambda: parse_study(tree | {"methods": {"mine": cell}}).experiments(METHODS))
    assert "set cache.trainable to keys" in found[0]


def test_tuning_needs_held_out_client_data():
    tree = {"study": "s", "methods": ["fedavg_head"], "evaluation": {"holdout_fraction": 0.0}}
    study = parse_study(tree)
    assert only(study).phase == "final"
    found = problems(lambda: study.resolve([("fedavg_head", {}, 1000, "tune")], METHODS))
    assert "set evaluation.holdout_fraction above 0" in found[0]


def test_a_methods_file_is_found_beside_the_study(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = load("methods: {mine: {use: mine.py}, named: {use: 'mine.py:Mine'}}")
    monkeypatch.chdir(tmp_path.parent)
    elsewhere = [e.use for e in study.experiments(METHODS)]
    assert elsewhere == ["mine.py", "mine.py:Mine"]  # no such file: as written
    (tmp_path / "mine.py").write_text("# a method")
    beside = [e.use for e in study.experiments(METHODS)]
    assert beside == [f"{tmp_path / 'mine.py'}", f"{tmp_path / 'mine.py'}:Mine"]


# --- whatever is in the file, the answer is a study or a ConfigError -----------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text("ab.=:", max_size=4)
)
names = st.sampled_from(
    [
        "study",
        "methods",
        "partitions",
        "seeds",
        "grid",
        "tune",
        "train",
        "partition",
        "train.lr",
        "lr",
        "scheme",
        "output",
        "cachefl",
        "use",
        "engine",
        "group_size",
        "options",
        "shared",
    ]
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(names, scalars), inner, max_size=4)
    ),
    max_leaves=12,
)
overrides = st.sampled_from(
    [
        "method=cachefl",
        "method=[a]",
        "seed=1",
        "seed=x",
        "partition.scheme=iid",
        "train.lr=1",
        "train=3",
        "a.b=1",
        "grid.x=1",
        "partition.num_clients=3",
        "methods.cachefl.train.lr=2",
        "train={lr:1,momentum:{a:2}}",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, trees, max_size=5), st.lists(overrides, max_size=2))
def test_any_tree_is_a_study_or_a_list_of_problems(
    tree: dict[str, Any], given_overrides: list[str]
):
    tree.setdefault("study", "s")
    tree.setdefault("methods", ["cachefl"])
    try:
        for found in parse_study(tree, given_overrides).experiments(METHODS):
            assert found.run_id
            assert found.group_size >= 1
    except ConfigError as error:
        shown = error.problems
    else:
        shown = ["no problem"]
    assert all(isinstance(problem, str) and problem for problem in shown)
