"""Accuracy by domain and by client, against the runs it was made from."""

from pathlib import Path

import numpy as np
import pytest

import fedsim
from fedsim.results.report.breakdown import accuracy_by, breakdown_grids
from fedsim.results.report.numbers import percent
from fedsim.results.report.page import write_report
from fedsim.results.study import Study
from tests.helpers import experiment, feature_arrays, run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two methods and two seeds on two domains."""
    folder = tmp_path_factory.mktemp("domains")
    arrays = feature_arrays()
    for split in ("train", "val", "test"):
        half = np.arange(len(arrays[f"y_{split}"])) % 2
        arrays[f"domain_{split}"] = np.array(["ink", "oil"])[half]
    np.savez(folder / "data.npz", **arrays)
    own = {"partition__scheme": "domain", "partition__dirichlet_alpha": None}
    for method in ("fedavg_head", "local_only"):
        for seed in (0, 1):
            config = experiment(
                folder / "data.npz", method, seed=seed, partition__num_clients=2, **own
            )
            run(config, folder / "out")
    return fedsim.load(folder / "out")


def test_domains_add_up_to_the_accuracy_of_the_test_split(study: Study):
    table = accuracy_by(study, "domain")
    assert len(table) == 2 * 2 * 2
    right = (table["accuracy"] * table["num_samples"]).groupby(table["run_id"]).sum()
    share = right / table.groupby("run_id")["num_samples"].sum()
    last = study.rounds.sort_values("round").groupby("run_id")["accuracy"].last()
    assert share.to_dict() == pytest.approx(last.to_dict())


def test_clients_are_scored_by_the_model_they_are_served(study: Study):
    table = accuracy_by(study, "client")
    assert not table.duplicated(["run_id", "part"]).any()
    rows = study.evaluations.query("scope == 'client'")
    for row in table.itertuples():
        model = "personal" if row.method == "local_only" else "global"
        mine = rows[(rows["run_id"] == row.run_id) & (rows["client_id"] == row.part)]
        assert row.accuracy == mine.loc[mine["model"] == model, "value"].iloc[-1]


def test_a_row_per_method_and_the_worst_of_each_run(study: Study):
    (grid,) = breakdown_grids(study, "domain")
    assert grid.header == ["method", "ink", "oil", "worst"]
    assert [row[0] for row in grid.rows] == ["local_only", "fedavg_head"]
    table = accuracy_by(study, "domain")
    for method, ink, _, worst in grid.rows:
        mine = table[table["method"] == method]
        assert ink.startswith(percent(mine.loc[mine["part"] == "ink", "accuracy"].mean()))
        lowest = mine.groupby("run_id")["accuracy"].min().mean()
        assert worst.startswith(f"{percent(lowest)} ± ")
    (of_clients,) = breakdown_grids(study, "client")
    assert of_clients.header == ["method", "client 0", "client 1", "worst"]


def test_both_are_in_the_report(study: Study):
    page = write_report(study.path).read_text(encoding="utf-8")
    assert "By domain" in page
    assert '<th class="n">oil</th>' in page
    assert "One by one" in page


def test_networks_beside_the_served_one(tmp_path: Path):
    for use, options in (("feddm", {"global_models": ["lenet"]}), ("fedavg", {})):
        config = experiment(
            "digits",
            use,
            options=options,
            data__max_train_samples=60,
            models__classifier={"name": "convnet", "depth": 1, "width": 4},
            partition__num_clients=2,
            train__rounds=1,
            **({"distill__images_per_class": 1, "distill__latent_steps": 1} if options else {}),
        )
        run(config, tmp_path / "out")
    study = fedsim.load(tmp_path / "out")
    (grid,) = breakdown_grids(study, "model")
    assert grid.header == ["method", "global", "lenet"]
    ((method, served, beside),) = grid.rows  # fedavg has but one
    rows = study.evaluations.query("metric == 'accuracy' and scope == 'global' and split == 'test'")
    last = rows[rows["round"] == 1].groupby(["run_id", "model"])["value"].last()
    own = study.runs.set_index("method").loc[method, "run_id"]
    assert (served, beside) == tuple(percent(last[own, name]) for name in ("global", "lenet"))
    page = write_report(study.path).read_text(encoding="utf-8")
    assert "Networks on the server" in page
    assert "Sets of feddm" in page  # what its server made in each round
    assert "Sets of fedavg" not in page


def test_data_without_domains(tmp_path: Path):
    np.savez(tmp_path / "data.npz", **feature_arrays())
    folder = run(experiment(tmp_path / "data.npz", partition__num_clients=12), tmp_path / "out")
    study = fedsim.load(folder)
    assert breakdown_grids(study, "domain") == []
    page = write_report(folder).read_text(encoding="utf-8")
    assert "By domain" not in page
    assert "Networks on the server" not in page
    assert "One by one" not in page  # too many to know them by number
