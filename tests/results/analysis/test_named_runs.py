from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.results.analysis.named_runs import curves, final_runs, last_rounds
from fedsim.results.study import Study, load
from fedsim.results.tables.writer import TableWriter


def cells(study: Study) -> set[tuple[str, str]]:
    runs = final_runs(study)
    return set(zip(runs["method"], runs["partition"], strict=True))


def test_partitions_are_named_by_scheme_and_alpha_and_sorted(study: Study):
    names = list(dict.fromkeys(final_runs(study)["partition"]))
    assert names == ["dirichlet 0.05", "dirichlet 0.5", "iid"]
    methods = list(dict.fromkeys(final_runs(study)["method"]))
    assert methods == ["zero_shot", "fedavg", "cachefl", "feddgm", "centralised"]


def test_tuning_runs_do_not_count(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0)
    make_run(tmp_path, "fedavg", "iid", None, 1, phase="tune")
    study = load(tmp_path)
    assert len(study.runs) == 2
    assert final_runs(study)["seed"].tolist() == [0]
    assert set(curves(study)["seed"]) == {0}


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({"cache": {"k": 4}}, {"cache": {"k": 8}}, {"cachefl (k=4)", "cachefl (k=8)"}),
        ({"engine": {"threads": 1}}, {"engine": {"threads": 2}}, {"cachefl"}),
        (
            {"cache": {"k": 4}, "train": {"lr": 0.1}},
            {"cache": {"k": 8}, "train": {"lr": 0.2}},
            {"cachefl (lr=0.1)", "cachefl (lr=0.2)"},
        ),
    ],
)
def test_versions_of_a_method_are_told_apart_by_the_fewest_settings(
    tmp_path: Path, make_run: Callable[..., str], first: dict, second: dict, names: set[str]
):
    for config in (first, second):
        make_run(tmp_path, "cachefl", "iid", None, 0, config=config)
    make_run(tmp_path, "fedavg", "iid", None, 0)
    assert {method for method, _ in cells(load(tmp_path))} == names | {"fedavg"}


def test_two_settings_are_named_where_one_is_not_enough(
    tmp_path: Path, make_run: Callable[..., str]
):
    for k in (4, 8):
        for lr in (0.1, 0.2):
            make_run(tmp_path, "cachefl", "iid", None, 0, config={"k": k, "train": {"lr": lr}})
    names = {method for method, _ in cells(load(tmp_path))}
    assert len(names) == 4
    assert "cachefl (k=4, lr=0.1)" in names or "cachefl (lr=0.1, k=4)" in names


def test_settings_tuned_per_partition_do_not_split_a_method(
    tmp_path: Path, make_run: Callable[..., str]
):
    for alpha, lr in ((0.1, 0.1), (1.0, 0.01)):
        make_run(tmp_path, "cachefl", "dirichlet", alpha, 0, config={"train": {"lr": lr}})
    assert {method for method, _ in cells(load(tmp_path))} == {"cachefl"}


def test_an_axis_of_the_whole_study_belongs_to_the_setting(
    tmp_path: Path, make_run: Callable[..., str]
):
    for method in ("fedavg", "cachefl"):
        for share in (0.1, 1.0):
            config = {"train": {"participation": share}}
            make_run(tmp_path, method, "iid", None, 0, config=config)
    parts = {"iid, participation=0.1", "iid, participation=1"}
    assert cells(load(tmp_path)) == {(m, p) for m in ("fedavg", "cachefl") for p in parts}


def test_data_settings_belong_to_the_setting_even_for_one_method(
    tmp_path: Path, make_run: Callable[..., str]
):
    for shots in (4, 16):
        make_run(tmp_path, "fedavg", "iid", None, 0, config={"data": {"shots": shots}})
    assert cells(load(tmp_path)) == {("fedavg", "iid, shots=4"), ("fedavg", "iid, shots=16")}


def test_numbers_of_clients_are_named_where_they_differ(
    tmp_path: Path, make_run: Callable[..., str]
):
    make_run(tmp_path, "fedavg", "iid", None, 0, num_clients=5)
    make_run(tmp_path, "fedavg", "iid", None, 1, num_clients=9)
    assert {p for _, p in cells(load(tmp_path))} == {"iid, 5 clients", "iid, 9 clients"}


def test_bytes_add_up_from_the_set_up_on(study: Study):
    run = curves(study)
    run = run[run["run_id"] == run.loc[run["method"] == "cachefl", "run_id"].iloc[0]]
    assert run["bytes"].tolist() == [300_000 + 40_000 * r for r in range(9)]
    assert last_rounds(study)["round"].max() == 8


def test_accuracy_comes_from_evaluations_where_rounds_have_none(tmp_path: Path):
    with TableWriter(tmp_path, "a") as writer:
        writer.update_run(method="fedavg", dataset="d", partition="iid", seed=0, status="finished")
        writer.append("rounds", [{"round": r, "accuracy": 0.9, "split": "val"} for r in (0, 1)])
        row = {"scope": "global", "split": "test", "metric": "accuracy"}
        for model, value in (("global", 0.5), ("surrogate", 0.3)):
            writer.append("evaluations", [row | {"round": 1, "model": model, "value": value}])
    assert last_rounds(load(tmp_path))["accuracy"].tolist() == [0.5]


def test_the_last_evaluated_round_counts_where_the_last_was_not(tmp_path: Path):
    with TableWriter(tmp_path, "a") as writer:
        writer.update_run(method="fedavg", dataset="d", partition="iid", seed=0, status="finished")
        accuracies = enumerate([0.1, 0.4, None])
        writer.append("rounds", [{"round": r, "accuracy": value} for r, value in accuracies])
    last = last_rounds(load(tmp_path)).iloc[0]
    assert (last["round"], last["accuracy"]) == (2, 0.4)


def test_partitions_are_named_by_the_number_of_their_scheme(
    tmp_path: Path, make_run: Callable[..., str]
):
    from fedsim.config.sections import PartitionConfig

    asked = [
        PartitionConfig(scheme="pathological", classes_per_client=10),
        PartitionConfig(scheme="pathological", classes_per_client=2),
        PartitionConfig(scheme="quantity", size_sigma=0.5),
        PartitionConfig(scheme="quantity", dirichlet_alpha=0.3),
        PartitionConfig(scheme="dirichlet_label", dirichlet_alpha=0.1),
        PartitionConfig(scheme="iid"),
    ]
    for partition in asked:
        config = {"partition": partition.model_dump(mode="json")}
        alpha = partition.given().get("dirichlet_alpha")
        label = partition.label
        make_run(tmp_path, "fedavg", partition.scheme, alpha, 0, config=config, label=label)
    names = final_runs(load(tmp_path))["partition"].tolist()
    assert set(names) == {partition.label for partition in asked}
    assert names.index("pathological 2") < names.index("pathological 10")
    assert names[-1] == "iid"
