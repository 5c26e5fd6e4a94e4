"""Several studies compared."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from fedsim.errors import ResultsError
from fedsim.results.analysis.named_runs import final_runs, last_rounds
from fedsim.results.report.comparison import compare
from fedsim.results.several import load_several

MakeRun = Callable[..., str]


def fill(make_run: MakeRun, folder: Path, methods: list[str], seeds: range, **options) -> Path:
    for method in methods:
        for seed in seeds:
            make_run(folder, method, "dirichlet", 0.5, seed, **options)
    return folder


@pytest.fixture
def first(tmp_path: Path, make_run: MakeRun) -> Path:
    return fill(make_run, tmp_path / "first", ["fedavg", "cachefl"], range(4))


def test_tables_lie_below_one_another_and_say_whose_they_are(
    first: Path, tmp_path: Path, make_run: MakeRun
):
    second = fill(make_run, tmp_path / "second", ["fedavg", "feddgm"], range(3))
    both = load_several([first, second])
    assert both.name == "first and second"
    assert both.runs["study"].value_counts().to_dict() == {"first": 8, "second": 6}
    assert both.runs["run_id"].is_unique
    assert set(both.rounds["run_id"]) == set(both.clients["run_id"]) == set(both.runs["run_id"])
    assert both.runs["config.train.lr"].tolist() == [0.1] * 14
    assert both.synthetic_sets() == []
    pd.testing.assert_frame_equal(
        both.read("runs", ["run_id", "method"]), both.runs[["run_id", "method"]]
    )


def test_a_name_is_made_unique_where_methods_meet(first: Path, tmp_path: Path, make_run: MakeRun):
    second = fill(make_run, tmp_path / "second", ["fedavg", "feddgm"], range(4))
    names = set(final_runs(load_several([first, second]))["method"])
    assert names == {"fedavg [first]", "fedavg [second]", "cachefl", "feddgm"}
    elsewhere = fill(make_run, tmp_path / "else", ["fedavg"], range(4), dataset="other")
    assert set(final_runs(load_several([first, elsewhere]))["method"]) == {"fedavg", "cachefl"}


def test_folders_of_one_name_are_told_apart_by_those_above(
    first: Path, tmp_path: Path, make_run: MakeRun
):
    old = fill(make_run, tmp_path / "old" / "first", ["fedavg"], range(2))
    assert set(load_several([first, old]).members) == {f"{tmp_path.name}/first", "old/first"}


def test_equal_splits_of_two_studies_are_paired(first: Path, tmp_path: Path, make_run: MakeRun):
    second = fill(make_run, tmp_path / "second", ["feddgm"], range(1, 4))
    found = compare([first, second])
    row = found.summary.query("method == 'feddgm'").iloc[0]
    last = last_rounds(load_several([first, second])).set_index(["method", "seed"])["accuracy"]
    expected = stats.ttest_rel(last["feddgm"], last["fedavg"].loc[1:])
    assert (row["test"], row["num_pairs"], row["num_missing_pairs"]) == ("paired", 3, 1)
    assert row["p_value"] == pytest.approx(expected.pvalue)
    assert found.summary.attrs["reference"] == "fedavg"
    assert found.warnings == []


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        ({"data": {"shots": 4}}, {}, "data.shots is 4, the reference's none"),
        ({"partition": {"min_samples": 5}}, {}, "partition.min_samples is 5, the reference's 2"),
        ({"partition": {"seed": 9}}, {}, "partition.seed is 9, the reference's 0, 1, 2, 3"),
        ({}, {"num_clients": 7}, "the clients hold other samples"),
        ({"data": {"val_fraction": 0.1}, "partition": {"min_samples": 2}}, {}, None),  # defaults
        ({"data": {"path": "elsewhere.npz"}}, {}, None),
        ({"train": {"lr": 0.5}}, {}, None),
    ],
)
def test_pairs_share_the_settings_of_the_split(
    first: Path, tmp_path: Path, make_run: MakeRun, config: dict, options: dict, reason: str | None
):
    second = fill(make_run, tmp_path / "second", ["feddgm"], range(4), config=config, **options)
    found = compare([first, second])
    row = found.summary.query("method == 'feddgm'").iloc[0]
    assert row["partition"] == "dirichlet 0.5"
    if reason is None:
        assert row["test"] == "paired"
        return
    last = last_rounds(load_several([first, second])).groupby("method")["accuracy"]
    a, b = last.get_group("feddgm"), last.get_group("fedavg")
    assert row["test"] == "unpaired"
    assert row["p_value"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert found.summary.attrs["unpaired"] == {reason: ["feddgm"]}
    assert f"by Welch's test; feddgm: {reason}." in " ".join(found.text.split())
    line = next(line for line in found.text.splitlines() if "feddgm" in line)
    assert " w " in line


def test_a_partition_of_many_settings_meets_one_of_few(tmp_path: Path, make_run: MakeRun):
    for shots in (4, 16):
        config = {"data": {"shots": shots}}
        fill(make_run, tmp_path / "many", ["fedavg"], range(2), config=config)
    config = {"data": {"shots": 16}}
    fill(make_run, tmp_path / "few", ["cachefl"], range(2), config=config)
    summary = compare([tmp_path / "many", tmp_path / "few"]).summary
    assert set(zip(summary["partition"], summary["method"], strict=True)) == {
        ("dirichlet 0.5, shots=16", "fedavg"),
        ("dirichlet 0.5, shots=16", "cachefl"),
        ("dirichlet 0.5, shots=4", "fedavg"),
    }
    assert summary.query("method == 'cachefl'")["test"].tolist() == ["paired"]


def test_the_reference_is_that_of_the_first_study_or_the_one_asked_for(
    first: Path, tmp_path: Path, make_run: MakeRun
):
    report = {"report": {"reference_method": "cachefl"}}
    second = fill(make_run, tmp_path / "a", ["fedavg", "cachefl"], range(4), config=report)
    assert compare([first, second]).summary.attrs["reference"] == "cachefl [first]"
    fill(make_run, tmp_path / "b", ["fedavg"], range(4))
    assert compare([tmp_path / "b", second]).summary.attrs["reference"] == "cachefl"
    assert compare([second, first], "fedavg").summary.attrs["reference"] == "fedavg [a]"
    asked = compare([first, second], "fedavg [a]").summary.attrs["reference"]
    assert asked == "fedavg [a]"
    with pytest.raises(ResultsError, match="did you mean 'fedavg"):
        compare([first, second], "fedvag")


def test_only_what_is_asked_for_is_compared_and_corrected_for(
    first: Path, tmp_path: Path, make_run: MakeRun
):
    methods = ["feddgm", "fedprox", "moon"]
    second = fill(make_run, tmp_path / "second", methods, range(4))
    make_run(second, "feddgm", "dirichlet", 5.0, 0)
    whole = compare([first, second]).summary.set_index(["partition", "method"])
    found = compare([first, second], methods=["moon", "cachefl"], partitions=["dirichlet 0.5"])
    small = found.summary.set_index(["partition", "method"])
    assert set(small.index.get_level_values("method")) == {"fedavg", "moon", "cachefl"}
    assert set(small.index.get_level_values("partition")) == {"dirichlet 0.5"}
    p = whole.loc[small.index, "p_value"]
    pd.testing.assert_series_equal(small["p_value"], p)
    least, most = sorted(p.dropna())
    corrected = [min(1.0, 2 * least), min(1.0, max(2 * least, most))]  # Holm over two, not four
    assert sorted(small["p_holm"].dropna()) == pytest.approx(corrected)
    assert found.warnings == []
    with pytest.raises(ResultsError, match="no method 'mon' in the study; did you mean 'moon'"):
        compare([first, second], methods=["mon"])
    with pytest.raises(ResultsError, match="no partition 'dirichlet 0.4'.* mean 'dirichlet 0.5'"):
        compare([first, second], partitions=["dirichlet 0.4"])
    with pytest.raises(ResultsError, match="fedavg, which .* was not run in dirichlet 5; choose"):
        compare([first, second], partitions=["dirichlet 5"])
    one = compare([first, second], methods=["cachefl"])
    assert set(one.summary["method"]) == {"fedavg", "cachefl"}
    assert "none of second's runs is asked for" in one.warnings


def test_what_cannot_be_compared_is_said_first(first: Path, tmp_path: Path, make_run: MakeRun):
    half = tmp_path / "half"
    fill(make_run, half, ["feddgm"], range(2))
    fill(make_run, half, ["fedprox"], range(2), last_round=3, status="failed")
    (warning,) = compare([first, half]).warnings
    assert warning == "2 of 4 runs of half are not finished: they are not counted"
    other = fill(make_run, tmp_path / "other", ["cachefl"], range(2), dataset="d2")
    warnings = compare([first, other]).warnings
    assert "fedavg, which the others are compared with, is missing in 1 of 2" in warnings[0]
    assert warnings[1] == "these studies have no data set and partition in common"
    tuned = fill(make_run, tmp_path / "tuned", ["cachefl"], range(1), phase="tune")
    assert "tuned has no run yet, tuning aside" in compare([first, tuned]).warnings
    with pytest.raises(ResultsError, match="given twice"):
        compare([first, tmp_path / "half" / ".." / "first"])


def test_ranks_and_margins_have_tables_of_their_own(tmp_path: Path, make_run: MakeRun):
    for number in range(6):
        methods = ["fedavg", "cachefl", "feddgm"]
        fill(make_run, tmp_path / f"s{number}", methods, range(3), dataset=f"d{number}")
    found = compare([tmp_path / f"s{number}" for number in range(6)], margin=0.003)
    assert max(map(len, found.text.splitlines())) <= 110
    ranked = found.text[found.text.index("average rank") :]
    wide = found.summary.pivot_table(index="dataset", columns="method", values="accuracy_mean")
    d = wide["cachefl"] - wide["fedavg"]
    row = next(line.split() for line in ranked.splitlines() if line.startswith("cachefl"))
    assert row[:5] == ["cachefl", "1.00", "6", "6", "0"]
    corrected = min(1.0, 2 * float(stats.wilcoxon(d).pvalue))  # Holm over two rivals, equal p
    assert float(row[-1]) == pytest.approx(corrected, abs=6e-4)
    assert "no more than 0.3 points below the best other one" in found.text
    row = found.summary.query("dataset == 'd0' and method == 'cachefl'").iloc[0]
    assert row["rival"] == "feddgm"
    assert row["margin_low"] > 0
    assert found.summary["margin_p_holm"].notna().all()
