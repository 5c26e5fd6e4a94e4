"""`fedsim sweep --tune`: equal trials, ranges that grow, choices that never see test data."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from fedsim.config import Experiment
from fedsim.config.study_file import parse_study
from fedsim.driver import tuning
from fedsim.driver.tuning import Score, Search, Trial
from fedsim.errors import ConfigError, ExecutionError
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from tests.cli.place import STUDY, Fedsim

RUNS = Path("runs/trial")

TUNED = (
    STUDY.replace(
        "{fedavg_head: {}}", "{fedavg_head: {}, cache_text: {use: cachefl, cache.init: text}}"
    )
    + """
tune:
  seeds: [1000, 1001]
  extensions: 1
  grid:
    fedavg_head: {train.lr: [1.0e-6, 1.0e-5, 1.0e+38]}
    cache_text: {train.lr: [1.0e-6, 1.0e-3, 0.1]}
"""
)


@pytest.mark.usefixtures("no_report")
def test_tuning_from_end_to_end(fedsim: Fedsim, place: Path):
    Path("study.yaml").write_text(TUNED)
    code, out, err = fedsim("sweep", "study.yaml", "--tune")
    assert code == 0, err
    text = (RUNS / "selected.yaml").read_text()
    assert text in out
    assert "written to runs/trial/selected.yaml" in out
    chosen = yaml.safe_load(text)
    assert set(chosen) == {"fedavg_head", "cache_text"}
    assert chosen["fedavg_head"]["train.lr"] < 1e38  # it diverged, and lost
    assert text.count("0.00 %") >= 1
    assert err.count("failed: fedavg_head") == 2  # told once per seed, and not tried again

    study = load(RUNS)
    runs = study.runs
    assert set(runs.phase) == {"tune"}
    assert set(runs.seed) == {1000, 1001}
    per_method = runs.groupby("method").size()
    assert per_method.nunique() == 1
    assert f"# fedavg_head: {per_method['fedavg_head'] // 2} trials" in text
    assert f"# cache_text: {per_method['cache_text'] // 2} trials" in text
    assert set(study.evaluations.split) == {"client_holdout"}
    assert len(study.predictions) == 0

    # The final sweep with what was chosen runs its own cells only.
    final = yaml.safe_load(TUNED)
    for name, settings in chosen.items():
        final["methods"][name] |= settings
    Path("final.yaml").write_text(yaml.safe_dump(final, sort_keys=False))
    code, _, err = fedsim("sweep", "final.yaml")
    assert code == 0, err
    assert [line.partition("] ")[2].split(" ")[0] for line in err.splitlines()] == list(chosen)
    after = load(RUNS).runs
    assert len(after) == len(runs) + 2
    assert after[after.phase == "tune"].run_id.tolist() == runs.run_id.tolist()
    # Nor does tuning once more run anything but what diverged.
    code, _, err = fedsim("sweep", "study.yaml", "--tune")
    assert code == 0, err
    assert (RUNS / "selected.yaml").read_text() == text
    assert all("fedavg_head" in line for line in err.splitlines() if "failed" in line)


# --- the choice itself, with made-up scores ------------------------------------------------------


class Trials:
    """What tuning asked for, and the score that each trial gets."""

    def __init__(self, score: Callable[[str, dict[str, Any]], float]) -> None:
        self.asked: list[list[Experiment]] = []
        self.score = score

    def points(self, method: str) -> list[float]:
        """Learning rates in the order they were asked for."""
        found = [e.train.lr for batch in self.asked for e in batch if e.method == method]
        return list(dict.fromkeys(found))


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    def run(grid: dict[str, Any], trials: Trials, **settings: Any) -> dict[str, Any]:
        folder = tmp_path / "runs" / "s"
        folder.mkdir(parents=True, exist_ok=True)
        tree: dict[str, Any] = {"study": "s", "output": str(tmp_path / "runs")}
        tree |= {"methods": list(grid), "tune": {"grid": grid, **settings}}
        study = parse_study(tree, source="study.yaml")

        def judge(_: Any, searches: list[Search]) -> None:
            for trial in (trial for search in searches for trial in search.trials):
                mean = fmean(trials.score(e.method, e.flat()) for e in trial.runs)
                trial.score = Score(len(trial.runs), mean)

        monkeypatch.setattr(tuning, "_judge", judge)
        return tuning.tune_study(study, lambda asked, _: trials.asked.append(asked))

    return run


def test_a_trial_that_was_stopped_early_gives_way_to_one_that_was_not():
    stopped, whole, failed = Score(1, 0.9, 1), Score(2, 0.2), Score(0, 0.0)

    def chosen(*scores: Score) -> int:
        search = Search(parse_study({"study": "s", "methods": ["m"]}), "m", [])
        search.trials = [Trial({"place": i}, [], score) for i, score in enumerate(scores)]
        return search.best()["place"]

    assert chosen(stopped, whole) == 1
    # On several partitions each trial may lag behind somewhere: then who did so least.
    assert chosen(stopped, Score(0, 0.95, 2)) == 0
    assert chosen(failed, stopped) == 1
    with pytest.raises(ExecutionError, match="no trial of m finished"):
        chosen(failed, failed)


UPSIDE_DOWN = """
from fedsim.methods.fedavg_head import FedAvgHead

class UpsideDown(FedAvgHead):
    def predictor(self, state, client_state=None):
        model = super().predictor(state, client_state)
        return model if self.config.train.lr < 0.5 else lambda x: -model(x)
"""


@pytest.mark.ray
@pytest.mark.usefixtures("no_report")
def test_trials_that_lag_behind_end_early(fedsim: Fedsim, place: Path):
    Path("upside_down.py").write_text(UPSIDE_DOWN)
    study = yaml.safe_load(STUDY) | {
        "methods": {"head": {"use": "upside_down.py:UpsideDown"}},
        "engine": {"backend": "ray"},
        "resources": {"num_actors": 1},
    }
    study["train"]["rounds"] = 6
    study["tune"] = {
        "extensions": 0,
        "early_stopping": {"grace_rounds": 1, "reduction_factor": 2},
        "grid": {"head": {"train.lr": [0.01, 0.02, 0.03, 0.7, 0.8, 0.9]}},
    }
    Path("study.yaml").write_text(yaml.safe_dump(study))
    code, out, err = fedsim("sweep", "study.yaml", "--tune")
    assert code == 0, err
    tables = load(RUNS)
    runs = tables.runs.set_index("run_id")
    stopped = runs.status == "stopped"
    assert set(runs.status) == {"finished", "stopped"}
    assert stopped[runs["config.train.lr"] > 0.5].any()
    last = tables.rounds.groupby("run_id")["round"].max()
    assert (last[runs.index[~stopped]] == 6).all()
    assert last[runs.index[stopped]].between(1, 5).all()
    assert err.count("stopped early") == out.count("(stopped early)") == stopped.sum()
    started = runs.started_at.max()
    code, again, err = fedsim("sweep", "study.yaml", "--tune")
    assert code == 0, err
    assert again == out
    assert load(RUNS).runs.started_at.max() == started, "what was stopped is not run again"


ROLLED = """
import torch
from fedsim.methods.fedavg_head import FedAvgHead

class Rolled(FedAvgHead):
    # The higher the learning rate, the more samples are wrong: the lowest one is best.
    def predictor(self, state, client_state=None):
        model, lr = super().predictor(state, client_state), self.config.train.lr
        wrong = sum(lr > edge for edge in (1e-3, 1e-2, 0.1))

        def call(x):
            logits = model(x)
            turned = (torch.arange(len(logits)) % 4 < wrong).unsqueeze(1)
            return torch.where(turned, -logits, logits)

        return call
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_report")
def test_extensions_on_ray_start_it_once_and_choose_what_this_process_chooses(
    fedsim: Fedsim, place: Path, monkeypatch: pytest.MonkeyPatch
):
    import ray

    started, init, runs_already = [], ray.init, ray.is_initialized()
    monkeypatch.setattr(ray, "init", lambda **how: started.append(init(**how)))
    Path("rolled.py").write_text(ROLLED)
    study = yaml.safe_load(STUDY) | {"methods": {"head": {"use": "rolled.py"}}}
    study["resources"] = {"num_actors": 1}
    study["tune"] = {"extensions": 2, "grid": {"head": {"train.lr": [0.05, 0.5]}}}
    Path("study.yaml").write_text(yaml.safe_dump(study))
    for backend in ("local", "ray"):
        words = (f"study={backend}", f"engine.backend={backend}")
        code, _, err = fedsim("sweep", "study.yaml", *words, "--tune")
        assert code == 0, err
    folders = [Path("runs") / backend for backend in ("local", "ray")]
    here, there = [(folder / "selected.yaml").read_text() for folder in folders]
    assert here == there
    assert "head: 4 trials" in here
    assert equal_results(*map(load, folders)) == []
    assert len(started) == (0 if runs_already else 1)  # other tests share a Ray of this process


def best_at(**values: float) -> Callable[[str, dict[str, Any]], float]:
    """The nearer a method's learning rate is to its best, the better."""
    return lambda method, flat: 1 / (1 + abs(flat["train.lr"] - values[method]))


def test_who_is_at_an_edge_goes_on_and_the_others_get_as_many(tune, tmp_path: Path):
    trials = Trials(best_at(fedavg_head=100.0, cachefl=0.1))
    grid = {"fedavg_head": {"train.lr": [0.01, 0.1, 1.0]}, "cachefl": {"train.lr": [0.01, 0.1, 1]}}
    chosen = tune(grid, trials, extensions=2)
    assert chosen == {"fedavg_head": {"train.lr": 100.0}, "cachefl": {"train.lr": 0.1}}
    assert trials.points("fedavg_head") == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert trials.points("cachefl") == [0.01, 0.1, 1.0, 0.316, 0.0316]  # near its own best
    ids = [e.run_id for batch in trials.asked for e in batch]
    assert len(ids) == len(set(ids))  # nothing is asked for twice
    assert {(e.phase, e.seed) for batch in trials.asked for e in batch} == {("tune", 1000)}
    text = (tmp_path / "runs/s/selected.yaml").read_text()
    assert "fedavg_head: 5 trials" in text
    assert "cachefl: 5 trials" in text
    assert text.count("still at the edge") == 1  # two extensions were not enough
    assert yaml.safe_load(text) == chosen


def test_the_best_trials_are_confirmed_on_more_seeds(tune, tmp_path: Path):
    """A rate that is best on the first seed and diverges on the others is not chosen."""

    def score(method: str, flat: dict[str, Any]) -> float:
        if flat["train.lr"] == 1.0:
            return 0.9 if flat["seed"] == 1000 else 0.0
        return flat["train.lr"]

    grid = {name: {"train.lr": [0.01, 0.1, 0.5, 1.0]} for name in ("fedavg_head", "cachefl")}
    settings = {"extensions": 0, "confirm_best": 2}
    assert tune(grid, Trials(score), **settings)["cachefl"] == {"train.lr": 1.0}
    trials = Trials(score)
    assert tune(grid, trials, **settings, confirm_seeds=[1001, 1002]) == {
        "fedavg_head": {"train.lr": 0.5},
        "cachefl": {"train.lr": 0.5},
    }
    again = [(e.train.lr, e.seed) for e in trials.asked[-1] if e.method == "cachefl"]
    assert again == [(1.0, 1001), (1.0, 1002), (0.5, 1001), (0.5, 1002)]
    text = (tmp_path / "runs/s/selected.yaml").read_text()
    first, second, third = [line for line in text.splitlines() if " % " in line][:3]
    assert first.endswith("(on 1001, 1002 as well)")
    assert '"train.lr": 0.5' in first
    assert "30.00 %" in second
    assert "still at the edge" not in text  # of what was best before
    assert third.endswith('{"train.lr": 0.1}')


def test_seeds_to_confirm_on_are_nobody_elses(tune):
    trials, grid = Trials(best_at(cachefl=0.1)), {"cachefl": {"train.lr": [0.1, 1.0]}}
    with pytest.raises(ConfigError, match="each seed once"):
        tune(grid, trials, confirm_seeds=[1000])
    with pytest.raises(ConfigError, match="0 would be tuned on and reported"):
        tune(grid, trials, confirm_seeds=[0])


def test_two_axes_at_their_edges_still_give_equal_numbers(tune):
    def score(method: str, flat: dict[str, Any]) -> float:
        if method == "cachefl":
            return flat["train.lr"] + flat["cache.sharpness"]
        return 1 / (1 + abs(flat["train.lr"] - 0.1)) + (flat["train.momentum"] == 0.9)

    trials = Trials(score)
    grid = {
        "cachefl": {"train.lr": [0.1, 1.0], "cache.sharpness": [1.0, 2.0, 4.0]},
        "fedavg_head": {"train.momentum": [0.0, 0.9], "train.lr": [0.01, 0.1, 1.0]},
    }
    tune(grid, trials, extensions=2)
    asked = [e.method for batch in trials.asked for e in batch]
    # One step along each axis from (1, 4), then one more learning rate from (10, 4).
    assert asked.count("cachefl") == asked.count("fedavg_head") == 2 * 3 + 2 + 1


def test_a_range_never_grows_into_what_cannot_be(tune, tmp_path: Path):
    trials = Trials(lambda method, flat: flat["train.participation"] + flat["train.momentum"])
    grid = {"fedavg_head": {"train.participation": [0.5, 1.0], "train.momentum": [0.5, 0.9]}}
    chosen = tune(grid, trials)
    assert chosen == {"fedavg_head": {"train.participation": 1.0, "train.momentum": 0.9}}
    assert len(trials.asked) == 1
    assert "edge" not in (tmp_path / "runs/s/selected.yaml").read_text()


def test_an_option_is_not_extended_beyond_what_the_method_takes(tune):
    trials = Trials(lambda method, flat: float(flat["options.model"] == "cache"))
    grid = {"synthetic_only": {"options.model": ["head", "cache"]}}
    assert tune(grid, trials) == {"synthetic_only": {"options.model": "cache"}}


def test_without_numbers_there_is_nothing_more_to_try(tune, tmp_path: Path):
    trials = Trials(lambda method, flat: flat["train.lr"])
    grid = {
        "fedavg_head": {"train.lr": [0.1, 1.0]},
        "synthetic_only": {"options.model": ["head", "cache"]},
    }
    tune(grid, trials)
    text = (tmp_path / "runs/s/selected.yaml").read_text()
    assert "fewer trials than others" in text.partition("synthetic_only:")[2]


def test_unordered_and_repeated_values_are_one_range(tune):
    trials = Trials(best_at(fedavg_head=0.1))
    assert tune({"fedavg_head": {"train.lr": [1.0, 0.01, 0.1, 0.1]}}, trials) == {
        "fedavg_head": {"train.lr": 0.1}
    }
    assert trials.points("fedavg_head") == [0.01, 0.1, 1.0]
    assert len(trials.asked) == 1


def test_whole_numbers_stay_whole(tune):
    trials = Trials(lambda method, flat: flat["train.local_epochs"])
    chosen = tune({"fedavg_head": {"train.local_epochs": [1, 2, 5]}}, trials, extensions=1)
    assert chosen == {"fedavg_head": {"train.local_epochs": 12}}


def test_a_method_of_which_nothing_finished_ends_tuning(tune):
    with pytest.raises(ExecutionError, match="no trial of fedavg_head finished"):
        tune({"fedavg_head": {"train.lr": [0.1, 1.0]}}, Trials(lambda method, flat: 0.0))


def test_a_tuned_value_that_cannot_be_is_refused_first(tune):
    trials = Trials(lambda method, flat: 1.0)
    with pytest.raises(ConfigError, match="grid: train.lr is -1"):
        tune({"fedavg_head": {"train.lr": [-1.0, 1.0]}}, trials)
    assert trials.asked == []
