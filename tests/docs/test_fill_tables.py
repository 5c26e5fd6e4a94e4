"""The blocks of figures in pages, as `docs/fill_tables.py` writes them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fedsim
from fedsim.results.report.numbers import half_text, percent
from fedsim.results.study import Study
from tests.conftest import ROOT
from tests.helpers import experiment, feature_arrays, run

PAGE = """Before.

<!-- small-{kind} -->
what stood there
<!-- /small-{kind} -->

<!-- other-{kind} -->
of another study
<!-- /other-{kind} -->
"""


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", ROOT / "docs" / "fill_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("figures")
    arrays = feature_arrays()
    for split in ("train", "val", "test"):
        arrays[f"domain_{split}"] = np.array(["ink", "oil"])[
            np.arange(len(arrays[f"y_{split}"])) % 2
        ]
    np.savez(folder / "data.npz", **arrays)
    for method in ("zero_shot", "fedavg_head"):
        for seed in (0, 1):
            config = experiment(
                folder / "data.npz", method, seed=seed, partition__num_clients=2,
                partition__scheme="domain", partition__dirichlet_alpha=None,
            )  # fmt: skip
            run(config, folder / "small")
    return fedsim.load(folder / "small")


def test_cells_of_fewer_seeds_say_so(tables: ModuleType, study: Study):
    summary, page = study.summary(), PAGE.format(kind="matrix")
    assert "(n)" not in tables.fill(page, study, summary)
    summary.loc[summary["method"] == "zero_shot", "num_seeds"] = 1
    filled = tables.fill(page, study, summary)
    assert "over seeds 0, 1, or the first (n) of them; " in filled
    (row,) = [line for line in filled.splitlines() if line.startswith("| zero_shot")]
    assert " (1)" in row


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("table", "| partition | method | accuracy % | against fedavg_head | p (Holm) |"),
        ("matrix", "| method | domain | bytes per run |"),
        ("differences", "| against fedavg_head | domain |"),
        ("reach", "| method | domain: "),
        ("domains", "| method | ink | oil | worst |"),
        ("clients", "| method | client 0 | client 1 | worst |"),
        ("costs", "| method | each client: up | each client: down |"),
    ],
)
def test_a_block_is_filled_and_the_rest_left_alone(
    tables: ModuleType, study: Study, kind: str, header: str
):
    page = PAGE.format(kind=kind)
    filled = tables.fill(page, study, study.summary())
    assert header in filled
    assert "what stood there" not in filled
    assert filled.partition("<!-- other-")[2] == page.partition("<!-- other-")[2]
    assert tables.fill(filled, study, study.summary()) == filled  # and can be filled again
    rows = [line for line in filled.splitlines() if line.startswith("| ")]
    assert len(rows) == 3  # header and two methods
    only = page.replace(f"small-{kind} -->\nwhat", f"small-{kind} zero_shot -->\nwhat")
    rows = [x for x in tables.fill(only, study, study.summary()).splitlines() if x[:2] == "| "]
    assert len(rows) == 2
    assert "fedavg_head |" not in rows[1]


def test_figures_are_those_of_the_study(tables: ModuleType, study: Study):
    filled = tables.fill(PAGE.format(kind="table"), study, study.summary())
    row = next(line for line in filled.splitlines() if line.startswith("| domain | zero_shot"))
    accuracy = study.rounds.merge(study.runs.query("method == 'zero_shot'"), on="run_id")
    assert row.split(" | ")[2].startswith(percent(accuracy["accuracy"].mean()))
    assert "over seeds 0, 1;" in filled


def test_differences_are_those_of_the_summary(tables: ModuleType, study: Study):
    summary = study.summary()
    summary["p_holm"] = [0.0313 if method == "zero_shot" else np.nan for method in summary.method]
    (row,) = summary.query("method == 'zero_shot'").to_dict("records")
    expected = half_text(row["difference"], row["difference_high"], sign=True)
    filled = tables.fill(PAGE.format(kind="differences"), study, summary)
    assert f"| zero_shot | {expected}, p = 0.031 |" in filled
    assert "| fedavg_head | - |" in filled
    assert "minus that of fedavg_head, paired by seed, in points; p: paired t test" in filled
    summary["p_holm"] = summary["p_holm"] / 1000
    assert ", p < 0.001 |" in tables.fill(PAGE.format(kind="differences"), study, summary)


def test_reach_shows_rounds_to_all_targets_and_bytes_to_the_last(tables: ModuleType, study: Study):
    summary = study.summary()
    trained = summary["method"] == "fedavg_head"
    summary.loc[trained, ["rounds", "rounds_to_50", "rounds_to_90"]] = 9, 2.0, np.inf
    summary.loc[trained, ["bytes_total", "bytes_to_90"]] = 5 * 2.0**20, np.inf
    summary.attrs["targets"][0]["targets"] = {0.5: 0.45, 0.9: 0.6123}
    filled = tables.fill(PAGE.format(kind="reach"), study, summary)
    assert "| method | domain: 45.0 / 61.2 % |" in filled
    assert "| fedavg_head | rounds 2 / >9, >5.0 MiB |" in filled
    assert "| zero_shot | - |" in filled  # trains nothing
    assert "50 % and 90 % of the way from zero-shot to the ceiling (the best method" in filled


@pytest.mark.parametrize("kind", ["table", "matrix", "differences", "reach"])
def test_methods_stand_in_the_order_of_their_names(tables: ModuleType, study: Study, kind: str):
    for names in (["zero_shot", "fedavg_head"], ["fedavg_head", "zero_shot"]):
        page = PAGE.format(kind=kind).replace(f"small-{kind}", f"small-{kind} {' '.join(names)}", 1)
        filled = tables.fill(page, study, study.summary())
        places = [filled.index(f"| {name} |") for name in names]
        assert places == sorted(places)


def test_missing_runs_are_told(tables: ModuleType, study: Study):
    summary = study.summary()
    assert " runs) |" not in tables.fill(PAGE.format(kind="matrix"), study, summary)
    summary["num_unfinished"] = (summary["method"] == "zero_shot").astype(int)
    filled = tables.fill(PAGE.format(kind="matrix"), study, summary)
    (row,) = [line for line in filled.splitlines() if " runs) |" in line]
    assert row.startswith("| zero_shot |")
    assert "(2 of 3 runs)" in row


def test_prices_beside_a_study_are_used(
    tables: ModuleType, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "experiments" / "small").mkdir(parents=True)
    prices = tmp_path / "experiments" / "small" / "prices.yaml"
    prices.write_text("currency: XTS\nper_gb_sent: 1000\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    filled = tables.fill(PAGE.format(kind="costs"), study, study.summary())
    assert " | all: XTS |" in filled
    assert "--prices experiments/small/prices.yaml" in filled


def test_the_sets_of_the_last_round_are_drawn_beside_the_page(tables: ModuleType, tmp_path: Path):
    for use in ("feddm", "feddm_sums"):
        config = experiment(
            "digits",
            use,
            data__max_train_samples=60,
            models__classifier={"name": "convnet", "depth": 1, "width": 4},
            partition__num_clients=2,
            train__rounds=2,
            distill__prior="pixels",
            distill__init="noise",
            distill__images_per_class=1,
            distill__latent_steps=1,
        )
        run(config, tmp_path / "small")
    study = fedsim.load(tmp_path / "small")
    page = PAGE.format(kind="sets").replace("small-sets -->", "small-sets feddm_sums feddm -->", 1)
    filled = tables.fill(page, study, study.summary(), tmp_path)
    assert "![feddm_sums, feddm: " in filled
    assert "seed 0" in filled
    assert (tmp_path / "sets.png").stat().st_size > 1000
    none = PAGE.format(kind="sets").replace("small-sets -->", "small-sets fedavg -->", 1)
    assert "![" not in tables.fill(none, study, study.summary(), tmp_path)
