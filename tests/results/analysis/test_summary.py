import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedsim.errors import ResultsError
from fedsim.results.analysis.named_runs import curves, last_rounds
from fedsim.results.analysis.summary import non_inferiority, rank_methods, summarise
from fedsim.results.analysis.targets import cost_to_reach
from fedsim.results.report.terminal import format_summary
from fedsim.results.study import Study, load


def test_a_row_of_the_summary_is_what_scipy_says(study: Study):
    summary = study.summary()
    assert len(summary) == 15
    last = last_rounds(study).set_index(["partition", "method", "seed"])["accuracy"].sort_index()
    mine, reference = last["dirichlet 0.5", "cachefl"], last["dirichlet 0.5", "fedavg"]
    row = summary[(summary["partition"] == "dirichlet 0.5") & (summary["method"] == "cachefl")]
    row = row.iloc[0]
    assert row["num_seeds"] == row["num_pairs"] == 4
    assert row["accuracy_mean"] == pytest.approx(mine.mean())
    assert row["accuracy_sd"] == pytest.approx(mine.std())
    difference = (mine - reference).to_numpy()
    low, high = stats.t.interval(0.95, 3, difference.mean(), stats.sem(difference))
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high))
    assert row["p_value"] == pytest.approx(stats.ttest_rel(mine, reference).pvalue)
    assert row["bytes_total"] == 300_000 + 8 * 40_000
    assert row["p_holm"] >= row["p_value"]
    assert row["best"]
    assert summary.attrs["reference"] == "fedavg"


def test_the_ceiling_is_never_the_best(study: Study):
    best = study.summary().query("best")
    assert best["method"].tolist() == ["cachefl"] * 3


def test_targets_lie_between_zero_shot_and_the_ceiling(study: Study):
    goal = study.summary().attrs["targets"][0]
    ceiling = last_rounds(study).query("method == 'centralised' and partition == 'dirichlet 0.05'")
    assert goal["zero_shot"] == pytest.approx(0.55)
    assert goal["zero_shot_from"] == "zero_shot"
    assert goal["ceiling"] == pytest.approx(ceiling["accuracy"].mean())
    assert goal["targets"][0.5] == pytest.approx((0.55 + goal["ceiling"]) / 2)


def test_costs_are_medians_over_runs_by_hand(study: Study):
    summary = study.summary(targets=(0.3,))
    row = summary.query("method == 'cachefl' and partition == 'iid'").iloc[0]
    table = curves(study).query("method == 'cachefl' and partition == 'iid'")
    reached = [
        run.loc[run["accuracy"] >= row["target_30"], "round"].min()
        for _, run in table.groupby("run_id")
    ]
    assert row["rounds_to_30"] == np.median(reached)
    assert row["bytes_to_30"] == 300_000 + 40_000 * np.median(reached)
    assert row["reached_30"] == 4


def test_a_target_that_is_not_reached_costs_infinity(study: Study):
    row = study.summary().query("method == 'fedavg' and partition == 'dirichlet 0.05'").iloc[0]
    assert row["rounds_to_90"] == math.inf
    assert row["reached_90"] == 0
    one = curves(study).query("method == 'fedavg' and seed == 0 and partition == 'iid'")
    assert cost_to_reach(one, 2.0) == (math.inf, math.inf, math.inf)
    assert all(math.isnan(cost) for cost in cost_to_reach(one, math.nan))
    assert cost_to_reach(one, 0.0) == (0.0, 0.0, 0.0)


def test_without_controls_targets_say_where_they_come_from(
    tmp_path: Path, make_run: Callable[..., str]
):
    for method in ("fedavg", "cachefl"):
        make_run(tmp_path, method, "iid", None, 0)
    goal = load(tmp_path).summary().attrs["targets"][0]
    assert goal["zero_shot"] == pytest.approx(0.2)
    assert "before training" in goal["zero_shot_from"]
    assert "best method here, cachefl" in goal["ceiling_from"]


def test_controls_of_another_partition_serve_the_data_set(
    tmp_path: Path, make_run: Callable[..., str]
):
    for method in ("zero_shot", "centralised", "fedavg"):
        make_run(tmp_path, method, "iid", None, 0)
    make_run(tmp_path, "fedavg", "dirichlet", 0.5, 0)
    goals = {goal["partition"]: goal for goal in load(tmp_path).summary().attrs["targets"]}
    assert goals["dirichlet 0.5"]["zero_shot"] == goals["iid"]["zero_shot"]
    assert goals["dirichlet 0.5"]["ceiling_from"] == "centralised, other partitions"


def test_the_better_ceiling_counts_and_no_ceiling_is_the_best(
    tmp_path: Path, make_run: Callable[..., str]
):
    names = ("zero_shot", "fedavg", "centralised_head", "centralised", "centralised_cache")
    for method in names:
        make_run(tmp_path, method, "iid", None, 0)
    study = load(tmp_path)
    last = last_rounds(study).set_index("method")["accuracy"]
    goal = study.summary().attrs["targets"][0]
    best = last[[name for name in names if name.startswith("centralised")]]
    assert best.nunique() > 1
    assert (goal["ceiling_from"], goal["ceiling"]) == (best.idxmax(), best.max())
    summary = study.summary().set_index("method")
    assert summary.index[summary["best"]].tolist() == ["fedavg"]
    assert list(summary.index)[-3:] == sorted(best.index)


def test_a_prior_that_saw_the_data_is_a_bound(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0)
    make_run(tmp_path, "feddgm", "iid", None, 0, config={"distill": {"prior_saw_data": False}})
    make_run(
        tmp_path, "seen", "iid", None, 0, shift=0.2, config={"distill": {"prior_saw_data": True}}
    )
    study = load(tmp_path)
    summary = study.summary().set_index("method")
    assert set(summary.index) == {"fedavg", "feddgm", "seen (leak)"}
    assert summary["accuracy_mean"].idxmax() == "seen (leak)"
    assert summary.index[summary["best"]].tolist() == ["feddgm"]
    assert "(leak): its prior was trained on this data" in format_summary(study.summary())
    assert set(non_inferiority(study, 0.01)["method"]) == {"fedavg", "feddgm"}


def test_one_seed_has_a_mean_and_no_interval(tmp_path: Path, make_run: Callable[..., str]):
    for method in ("fedavg", "cachefl"):
        make_run(tmp_path, method, "iid", None, 0)
    row = load(tmp_path).summary().query("method == 'cachefl'").iloc[0]
    assert row["accuracy_mean"] > 0.5
    assert math.isnan(row["accuracy_low"])
    assert row["difference"] > 0
    assert math.isnan(row["p_value"])


def test_unfinished_runs_and_missing_pairs_are_counted(
    tmp_path: Path, make_run: Callable[..., str]
):
    for seed in range(4):
        make_run(tmp_path, "fedavg", "iid", None, seed)
    make_run(tmp_path, "cachefl", "iid", None, 1)
    make_run(tmp_path, "cachefl", "iid", None, 2)
    make_run(tmp_path, "cachefl", "iid", None, 3, last_round=4, status="failed")
    make_run(tmp_path, "feddgm", "iid", None, 0, last_round=0, status="running")
    summary = load(tmp_path).summary()
    row = summary.query("method == 'cachefl'").iloc[0]
    assert (row["num_seeds"], row["num_unfinished"]) == (2, 1)
    assert (row["num_pairs"], row["num_missing_pairs"]) == (2, 2)
    assert math.isnan(summary.query("method == 'feddgm'").iloc[0]["accuracy_mean"])
    listed = [(run["method"], run["status"], run["round"]) for run in summary.attrs["unfinished"]]
    assert sorted(listed) == [("cachefl", "failed", 4), ("feddgm", "running", 0)]


def test_pairs_are_of_one_seed(tmp_path: Path, make_run: Callable[..., str]):
    for seed, shift in ((0, 0.0), (1, 0.1), (2, -0.1)):
        make_run(tmp_path, "fedavg", "iid", None, seed, shift=shift)
        make_run(tmp_path, "cachefl", "iid", None, seed, shift=shift)
    row = load(tmp_path).summary().query("method == 'cachefl'").iloc[0]
    spread = row["difference_high"] - row["difference_low"]
    assert spread < (row["accuracy_high"] - row["accuracy_low"]) / 2


def test_the_reference_comes_from_the_call_the_settings_or_the_name(
    tmp_path: Path, make_run: Callable[..., str]
):
    report = {"report": {"reference_method": "cachefl", "targets": [0.25]}}
    for method in ("fedprox", "fedavg_head", "cachefl"):
        make_run(tmp_path / "set", method, "iid", None, 0, config=report)
        make_run(tmp_path / "not", method, "iid", None, 0)
    assert summarise(load(tmp_path / "set")).attrs["reference"] == "cachefl"
    assert "rounds_to_25" in summarise(load(tmp_path / "set"))
    study = load(tmp_path / "not")
    assert summarise(study).attrs["reference"] == "fedavg_head"
    assert summarise(study, "fedprox").attrs["reference"] == "fedprox"
    with pytest.raises(ResultsError, match="did you mean 'fedprox'"):
        summarise(study, "fedprx")


def test_ranks_over_data_sets(tmp_path: Path, make_run: Callable[..., str]):
    for number in range(6):
        for method in ("fedavg", "cachefl", "feddgm"):
            make_run(tmp_path, method, "iid", None, 0, dataset=f"d{number}")
    make_run(tmp_path, "fedprox", "iid", None, 0, dataset="d0")
    summary = load(tmp_path).summary()
    ranks = rank_methods(summary)
    assert ranks["method"].tolist()[0] == "cachefl"
    assert ranks["average_rank"].sum() == pytest.approx(6)
    assert ranks.attrs["left_out"] == ["fedprox"]
    wide = summary.pivot_table(index="dataset", columns="method", values="accuracy_mean")
    expected = stats.wilcoxon(wide["cachefl"] - wide["fedavg"]).pvalue
    row = ranks.query("method == 'cachefl'").iloc[0]
    assert row["p_value"] == pytest.approx(expected)
    assert (row["wins"], row["losses"], row["num_datasets"]) == (6, 0, 6)


def test_without_common_seeds_methods_are_compared_by_welch(
    tmp_path: Path, make_run: Callable[..., str]
):
    for seed in range(4):
        make_run(tmp_path, "fedavg", "iid", None, seed)
        make_run(tmp_path, "cachefl", "iid", None, 10 + seed)
    study = load(tmp_path)
    summary = study.summary()
    row = summary.query("method == 'cachefl'").iloc[0]
    last = last_rounds(study).groupby("method")["accuracy"]
    a, b = last.get_group("cachefl"), last.get_group("fedavg")
    welch = stats.ttest_ind(a, b, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert row["test"] == "unpaired"
    assert row["p_value"] == pytest.approx(welch.pvalue)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high))
    assert (row["num_pairs"], row["num_missing_pairs"]) == (0, 8)
    assert summary.attrs["unpaired"] == {"too few seeds in common": ["cachefl"]}


def test_non_inferiority_is_against_the_best_other_method(study: Study):
    table = non_inferiority(study, 0.003).set_index(["partition", "method"])
    assert "centralised" not in table.index.get_level_values("method")
    assert set(table.drop("cachefl", level="method")["rival"]) == {"cachefl"}
    row = table.loc[("iid", "cachefl")]
    assert row["rival"] == "feddgm"
    last = last_rounds(study).query("partition == 'iid'").set_index(["method", "seed"])
    d = (last.loc["cachefl", "accuracy"] - last.loc["feddgm", "accuracy"]).to_numpy()
    expected = stats.ttest_1samp(d, -0.003, alternative="greater")
    assert row["margin_p"] == pytest.approx(expected.pvalue)
    assert row["margin_low"] == pytest.approx(expected.confidence_interval(0.95).low - 0.0)
    assert table.loc[("iid", "fedavg"), "margin_p"] > 0.5
    assert (table["margin_p_holm"] >= table["margin_p"]).all()


def test_only_the_claims_asked_for_are_corrected_for_one_another(study: Study):
    mine = non_inferiority(study, 0.003, methods=["cachefl"])
    assert mine["method"].tolist() == ["cachefl"] * 3
    every = non_inferiority(study, 0.003).query("method == 'cachefl'")
    assert mine["margin_p"].tolist() == every["margin_p"].tolist()
    assert (mine["margin_p_holm"].to_numpy() <= every["margin_p_holm"].to_numpy()).all()


@pytest.mark.parametrize("margin", [-0.001, 1.0])
def test_a_margin_that_is_none_is_refused(study: Study, margin: float):
    with pytest.raises(ResultsError, match="from 0 to below 100"):
        non_inferiority(study, margin)
