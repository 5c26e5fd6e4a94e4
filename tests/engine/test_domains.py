"""What a run says about the domains of its data."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.results.study import Study
from tests.helpers import experiment, feature_arrays, run

DOMAINS = np.array(["ink", "oil", "wax"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Features of three domains; `wax` is rare in test."""
    arrays = feature_arrays()
    rng = np.random.default_rng(1)
    for split, shares in (("train", (0.4, 0.3, 0.3)), ("test", (0.5, 0.4, 0.1))):
        drawn = rng.choice(3, size=len(arrays[f"y_{split}"]), p=shares)
        arrays[f"domain_{split}"] = DOMAINS[drawn]
    arrays["domain_val"] = DOMAINS[np.arange(len(arrays["y_val"])) % 3]
    path = tmp_path / "features.npz"
    np.savez(path, **arrays)
    return path


def study(data: Path, method: str = "fedavg_head", **settings: object) -> Study:
    given = {"partition__scheme": "domain", "partition__dirichlet_alpha": None, **settings}
    return fedsim.load(run(experiment(data, method, **given), data.parent / "out"))


def of_domains(found: Study, split: str) -> pd.DataFrame:
    rows = found.evaluations.query("scope == 'domain' and split == @split")
    return rows.set_index("domain")


def test_the_last_round_is_scored_on_every_domain(data: Path):
    found = study(data)
    rows = of_domains(found, "test")
    assert rows.index.tolist() == DOMAINS.tolist()
    assert set(rows["round"]) == {3}
    archive = np.load(data)
    said = found.predictions.sort_values("sample")["correct"].to_numpy()
    for domain, row in rows.iterrows():
        mine = archive["domain_test"] == domain
        assert row["value"] == said[mine].mean()
        assert row["num_samples"] == mine.sum()
    held = of_domains(found, "client_holdout")
    counts = found.evaluations.query("scope == 'client' and model == 'global'")["num_samples"]
    assert held["num_samples"].sum() == counts.sum()


def test_domains_of_held_out_samples_are_those_of_their_clients(data: Path):
    found = study(data)
    named = found.clients.query("round == 0").set_index("client_id")["domain"]
    assert set(named) == set(DOMAINS)  # partition `domain`: one each
    clients = found.evaluations.query("scope == 'client' and model == 'global'")
    right = (clients["value"] * clients["num_samples"]).groupby(clients["client_id"].map(named))
    held = of_domains(found, "client_holdout")
    expected = right.sum() / clients.groupby(clients["client_id"].map(named))["num_samples"].sum()
    assert held["value"].to_dict() == pytest.approx(expected.to_dict())


def test_a_client_of_several_domains_names_them_by_frequency(data: Path):
    found = study(data, partition__scheme="iid")
    named = found.clients.query("round == 0")["domain"]
    assert all(set(text.split(", ")) <= set(DOMAINS) for text in named)
    assert any(", " in text for text in named)


def test_models_of_their_own_are_scored_on_average(data: Path):
    found = study(data, "local_only")
    rows = of_domains(found, "test")
    total = (rows["value"] * rows["num_samples"]).sum() / rows["num_samples"].sum()
    assert total == pytest.approx(found.rounds["accuracy"].iloc[-1])


def test_a_domain_that_nobody_trains_on(data: Path):
    found = study(data, data__test_domain="oil")
    assert of_domains(found, "test").index.tolist() == ["oil"]
    assert "oil" not in set(of_domains(found, "client_holdout").index)
    assert found.rounds["accuracy"].iloc[-1] == of_domains(found, "test")["value"].item()
    assert set(found.clients.query("round == 0")["domain"]) == {"ink", "wax"}


def test_tuning_sees_no_domain_of_the_test_split(data: Path):
    found = study(data, phase="tune")
    assert of_domains(found, "test").empty
    assert len(of_domains(found, "client_holdout")) == 3


def test_data_without_domains(tmp_path: Path):
    path = tmp_path / "plain.npz"
    np.savez(path, **feature_arrays())
    found = fedsim.load(run(experiment(path, "fedavg_head"), tmp_path / "out"))
    assert found.evaluations.query("scope == 'domain'").empty
    assert found.clients["domain"].isna().all()
