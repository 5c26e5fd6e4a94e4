from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.results.analysis.named_runs import final_runs
from fedsim.results.study import Study, load
from fedsim.results.tables.reader import Selection
from fedsim.results.tables.schema import TABLES
from fedsim.results.tables.writer import TableWriter


def test_an_empty_study_has_empty_tables_of_the_right_types(tmp_path: Path):
    study = load(tmp_path)
    for name, table in TABLES.items():
        frame = getattr(study, name)
        assert frame.empty
        assert list(frame.columns) == table.names()
    assert study.rounds["round"].dtype == "int64"
    assert study.rounds["accuracy"].dtype == "float64"


def test_a_few_columns_are_those_of_the_whole_table(study: Study):
    for name, columns in {"runs": ["run_id", "status"], "rounds": ["round", "accuracy"]}.items():
        whole = getattr(study, name)[columns]
        pd.testing.assert_frame_equal(study.read(name, columns), whole)


def test_whole_numbers_and_truth_values_stay_what_they_are(study: Study, tmp_path: Path):
    assert study.rounds["bytes_up"].dtype == "int64"
    assert study.events["client_id"].dtype in ("int64", "Int64")
    with TableWriter(tmp_path, "a") as writer:
        writer.append("events", [{"kind": "x"}, {"kind": "y", "client_id": 2**60 + 1}])
    assert load(tmp_path).events["client_id"].tolist()[1] == 2**60 + 1
    assert load(tmp_path).events["client_id"].isna().tolist() == [True, False]


def test_settings_are_decoded_also_where_runs_have_different_ones(tmp_path: Path):
    settings = [{"lr": 0.1, "n": 3, "on": True, "size": "auto"}, {"lr": 1, "on": False, "size": 4}]
    for number, config in enumerate(settings):
        with TableWriter(tmp_path, f"r{number}") as writer:
            writer.update_run(config={"train": config, "list": [1, "a"]})
    runs = load(tmp_path).runs
    assert runs["config.train.lr"].tolist() == [0.1, 1.0]
    assert runs["config.train.on"].tolist() == [True, False]
    assert runs["config.train.on"].dtype == bool
    assert runs["config.train.size"].tolist() == ["auto", 4]
    assert runs["config.train.n"][0] == 3
    assert pd.isna(runs["config.train.n"][1])
    assert runs["config.list"][0] == [1, "a"]


def test_files_from_before_a_column_was_added_are_read(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "rounds").mkdir()
    old = pa.table({"run_id": ["a"], "round": pa.array([1], pa.int32()), "gone": [3]})
    pq.write_table(old, tmp_path / "rounds" / "a.parquet")
    rounds = load(tmp_path).rounds
    assert rounds["round"].tolist() == [1]
    assert rounds["accuracy"].isna().all()
    assert "gone" not in rounds


def test_tables_are_read_once(study: Study):
    assert study.rounds is study.rounds
    assert load(study.path).rounds is not study.rounds  # what was written since is seen


def test_another_selection_reads_nothing_again(study: Study):
    study.rounds  # noqa: B018
    other = study.showing(Selection(methods=("fedavg",)))
    assert other.rounds is study.rounds
    assert study.selection == Selection()
    assert set(final_runs(other)["method"]) == {"fedavg"}
    assert len(set(final_runs(study)["method"])) > 1


def test_what_is_computed_of_a_study_is_kept_and_safe_from_callers(study: Study):
    mine = final_runs(study)
    mine["more"] = 1
    again = final_runs(study)
    assert "more" not in again
    assert np.shares_memory(again["pooled"].to_numpy(), mine["pooled"].to_numpy())
