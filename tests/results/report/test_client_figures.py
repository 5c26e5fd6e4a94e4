from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedsim.results.report.breakdown import beyond_accuracy, client_grids, client_scores
from fedsim.results.report.client_figures import client_accuracy
from fedsim.results.report.page import write_report
from fedsim.results.study import Study, load
from fedsim.results.tables.writer import TableWriter

SPLIT = "client_holdout"


def write(
    folder: Path,
    method: str,
    seed: int,
    served: list[float] | None,
    own: dict[int, float] | None = None,
    status: str = "finished",
) -> None:
    """One run of one round, its clients measured as the engine does."""
    with TableWriter(folder, f"{method}-{seed}") as writer:
        writer.update_run(
            study=folder.name, method=method, dataset="d", partition="iid", seed=seed,
            num_clients=4, status=status,
        )  # fmt: skip
        writer.append("rounds", [{"round": r, "accuracy": 0.5} for r in (0, 1)])
        models = {"global": dict(enumerate(served or [])), "personal": own or {}}
        for model, clients in models.items():
            if not clients:
                continue
            key = {"round": 1, "model": model, "split": SPLIT}
            rows = [
                key | {"scope": "client", "metric": "accuracy", "client_id": c, "value": v,
                       "num_samples": 5}
                for c, v in clients.items()
            ]  # fmt: skip
            values = np.sort(list(clients.values()))
            spread = {"client_mean": values.mean(), "client_std": values.std(),
                      "client_worst10": values[0]}  # fmt: skip
            rows += [
                key | {"scope": "global", "metric": name, "value": value}
                for name, value in spread.items()
            ]
            writer.append("evaluations", rows)
        # An earlier round, the pooled accuracy and another split are none of this.
        others = {"scope": "client", "metric": "accuracy", "client_id": 0, "value": 0.0}
        writer.append("evaluations", [others | {"round": 0, "model": "global", "split": SPLIT}])
        writer.append("evaluations", [others | {"round": 1, "model": "global", "split": "test"}])
        scores = {"accuracy": 0.5, "balanced_accuracy": 0.4, "worst_class": 0.1 * (1 + seed),
                  "nll": 0.7, "ece": 0.05}  # fmt: skip
        where = {"round": 1, "model": "global", "scope": "global", "split": "test"}
        rows = [where | {"metric": name, "value": value} for name, value in scores.items()]
        writer.append("evaluations", rows)


@pytest.fixture
def measured(tmp_path: Path) -> Study:
    folder = tmp_path / "measured"
    for seed, shift in ((0, 0.0), (1, 0.1)):
        served = [0.4 + shift, 0.6, 0.8, 0.9]
        write(folder, "fedavg", seed, served, {1: 0.7 + shift, 3: 0.9})  # a cohort of two
        write(folder, "zero_shot", seed, served)
        write(folder, "local_only", seed, None, {0: 1.0, 1: 0.5, 2: 1.0, 3: 1.0})
    write(folder, "fedavg", 2, [0.0, 0.0, 0.0, 0.0], status="failed")
    return load(folder)


def cells(study: Study, method: str) -> dict[str, str]:
    (grid,) = client_grids(study)
    row = next(row for row in grid.rows if row[0] == method)
    return dict(zip(grid.header, row, strict=True))


def test_scores_are_those_of_the_last_round_of_finished_runs(measured: Study):
    scores = client_scores(measured)
    assert scores.groupby(["method", "model"]).size().to_dict() == {
        ("fedavg", "global"): 8, ("fedavg", "personal"): 4,
        ("zero_shot", "global"): 8, ("local_only", "personal"): 8,
    }  # fmt: skip
    mine = scores.query("method == 'zero_shot' and seed == 1").sort_values("client_id")
    assert mine["accuracy"].tolist() == [0.5, 0.6, 0.8, 0.9]


def test_the_table_by_hand(measured: Study):
    row = cells(measured, "fedavg")
    means = [0.675, 0.7]
    half = stats.t.ppf(0.975, 1) * np.std(means, ddof=1) / np.sqrt(2)
    assert row["served: mean"] == f"{100 * np.mean(means):.1f} ± {100 * half:.1f}"
    spreads = [np.std([0.4, 0.6, 0.8, 0.9]), np.std([0.5, 0.6, 0.8, 0.9])]
    assert row["served: sd"] == f"{100 * np.mean(spreads):.1f}"
    assert row["served: worst tenth"].startswith("45.0 ±")
    assert row["own: mean"].startswith("82.5 ±")


def test_the_gain_is_over_clients_that_have_both(measured: Study):
    gains = [(0.7 - 0.6 + 0.0) / 2, (0.8 - 0.6 + 0.0) / 2]
    assert cells(measured, "fedavg")["gain"].startswith(f"{100 * np.mean(gains):+.1f} ±")
    assert cells(measured, "zero_shot")["gain"] == "-"
    only_own = cells(measured, "local_only")
    assert only_own["served: mean"] == "-"
    assert only_own["own: worst tenth"] == "50.0 ± 0.0"


def test_one_seed_has_a_gain_and_no_interval(tmp_path: Path):
    write(tmp_path, "fedavg", 0, [0.5, 0.6], {0: 0.8})
    assert cells(load(tmp_path), "fedavg")["gain"] == "+30.0"


def test_without_own_models_there_are_no_columns_for_them(tmp_path: Path):
    write(tmp_path, "fedavg", 0, [0.5, 0.6])
    (grid,) = client_grids(load(tmp_path))
    assert grid.header == ["method", "served: mean", "served: sd", "served: worst tenth"]
    assert grid.rows == [["fedavg", "55.0", "5.0", "50.0"]]


def test_the_picture_shows_every_client(measured: Study):
    figure = client_accuracy(measured)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "fedavg", "local_only", "zero_shot"
    ]  # fmt: skip
    clouds = [cloud for cloud in axis.collections if len(cloud.get_offsets())]
    assert sorted(len(cloud.get_offsets()) for cloud in clouds) == [4, 8, 8, 8]
    shown = np.concatenate([cloud.get_offsets()[:, 0] for cloud in clouds])
    np.testing.assert_allclose(
        np.sort(np.asarray(shown)), np.sort(100 * client_scores(measured)["accuracy"])
    )
    for cloud in clouds:  # points stay in the row of their method
        heights = np.asarray(cloud.get_offsets()[:, 1])
        assert np.ptp(heights) < 0.4
        assert len(set(np.round(heights))) == 1
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "served model", "the client's own"
    }  # fmt: skip


def test_beyond_accuracy_by_hand(measured: Study):
    (grid,) = beyond_accuracy(measured)
    row = dict(zip(grid.header, next(r for r in grid.rows if r[0] == "fedavg"), strict=True))
    half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.2], ddof=1) / np.sqrt(2)
    assert row["balanced accuracy, %"] == "40.0 ± 0.0"
    assert row["worst class, %"] == f"15.0 ± {100 * half:.1f}"
    assert row["NLL, nats"] == "0.700 ± 0.000"
    assert row["ECE, %"] == "5.0 ± 0.0"


def test_the_report_has_both_parts_only_where_there_are_numbers(
    measured: Study, tmp_path: Path, make_run: Callable[..., str]
):
    page = write_report(measured.path).read_text()
    assert "<h2>Clients</h2>" in page
    assert "<h2>Beyond accuracy</h2>" in page
    assert "served: worst tenth" in page
    make_run(tmp_path / "plain", "fedavg", "iid", None, 0)
    page = write_report(tmp_path / "plain").read_text()
    assert "<h2>Clients</h2>" not in page
    assert "<h2>Beyond accuracy</h2>" not in page
    empty = load(tmp_path / "plain")
    assert client_grids(empty) == []
    assert client_scores(empty).empty
    assert len(client_accuracy(empty).axes) == 1
