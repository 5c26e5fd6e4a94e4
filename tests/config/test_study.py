"""Study files: what is refused and how, overrides, axes and names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config import Experiment
from fedsim.config.sections import TrainConfig
from fedsim.config.study import StudyFile, load_study, parse_study
from fedsim.config.tune import TuneConfig
from fedsim.errors import ConfigError
from fedsim.methods import METHODS

Load = Callable[..., StudyFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a study file and loads it."""

    def write(text: str, *overrides: str) -> StudyFile:
        path = tmp_path / "trial.yaml"
        path.write_text(text, encoding="utf-8")
        return load_study(path, overrides)

    return write


def only(study: StudyFile) -> Experiment:
    (experiment,) = study.experiments(METHODS)
    return experiment


def problems(action: Callable[[], Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action()
    return caught.value.problems


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


def test_a_missing_file_names_its_neighbour(load: Load, tmp_path: Path):
    load("methods: [cachefl]")
    with pytest.raises(ConfigError, match="did you mean 'trial.yaml'"):
        load_study(tmp_path / "trail.yaml")
    with pytest.raises(ConfigError, match="no study file"):
        load_study(tmp_path / "nowhere" / "trial.yaml")


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


# --- overrides -----------------------------------------------------------------------------------

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


def test_only_a_generated_cache_is_called_cachefl():
    tree = {"study": "s", "methods": {"cachefl": {"cache.init": "text"}}}
    found = problems(lambda: parse_study(tree).experiments(METHODS))
    assert "cache_text: {use: cachefl" in found[0]
    tree = {"study": "s", "methods": {"cache_text": {"use": "cachefl", "cache.init": "text"}}}
    assert only(parse_study(tree)).cache.init == "text"


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
