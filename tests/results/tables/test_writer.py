from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.errors import ResultsError
from fedsim.results.study import load
from fedsim.results.tables import files
from fedsim.results.tables.writer import TableWriter


def rounds(first: int, last: int) -> list[dict[str, object]]:
    return [{"round": r, "accuracy": r / 100} for r in range(first, last + 1)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_come_back_as_written(tmp_path: Path):
    now = datetime.now(UTC)
    with TableWriter(tmp_path / "s", "a") as writer:
        writer.update_run(config={"train": {"lr": 0.1}}, method="fedavg", started_at=now)
        client = {"round": 0, "client_id": np.int32(3), "label_counts": np.array([4, 0])}
        writer.append("clients", [client, {"round": 0, "client_id": 4, "label_counts": [1, 2]}])
        writer.append("events", [{"round": None, "kind": "note", "time": now, "message": "é\n"}])
        writer.append("rounds", [{"round": 0, "accuracy": np.float32(0.5), "loss": float("nan")}])
    study = load(tmp_path / "s")
    assert study.clients["client_id"].tolist() == [3, 4]
    assert [list(counts) for counts in study.clients["label_counts"]] == [[4, 0], [1, 2]]
    assert study.clients["run_id"].tolist() == ["a", "a"]
    assert study.events["time"].tolist() == [pd.Timestamp(now)]
    assert study.events["message"].tolist() == ["é\n"]
    assert study.rounds.loc[0, ["accuracy", "loss"]].isna().tolist() == [False, True]
    assert study.runs.loc[0, "started_at"] == pd.Timestamp(now)
    assert study.runs.loc[0, "config.train.lr"] == 0.1


def test_a_table_is_readable_without_fedsim(tmp_path: Path):
    writer = TableWriter(tmp_path, "a", seal_rows=2)
    for r in range(5):
        writer.append("rounds", rounds(r, r))
        writer.commit()
    assert sorted(pd.read_parquet(tmp_path / "rounds")["round"]) == [0, 1, 2, 3, 4]


def test_columns_may_come_as_arrays_with_single_values_repeated(tmp_path: Path):
    with TableWriter(tmp_path, "a") as writer:
        columns = {"sample": np.arange(3), "label": [0, 1, 1], "prediction": np.array([0, 1, 0])}
        columns["correct"] = columns["label"] == columns["prediction"]
        writer.append("predictions", {"round": 9, "split": "test"} | columns)
    table = load(tmp_path).predictions
    assert table["correct"].tolist() == [True, True, False]
    assert table["split"].tolist() == ["test"] * 3
    assert table["correct"].dtype == bool


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("rounds", {"round": 1, "acc": 0.5}, "no column 'acc'"),
        ("rond", {"round": 1}, "no table 'rond'; did you mean 'rounds'"),
        ("rounds", {"accuracy": 0.5}, "'round' needs a value"),
        ("rounds", {"round": None}, "row 0: column 'round' needs a value"),
        ("rounds", {"round": 1, "accuracy": "high"}, r"row 0, column 'accuracy' .*'high' \(str\)"),
        ("rounds", {"round": 1, "bytes_up": 1.5}, "1.5 is not a whole number"),
        ("rounds", {"round": True}, "'round'"),
        ("rounds", {"round": 1, "time": datetime(2026, 1, 1)}, "no time zone"),
        ("rounds", {"round": 1, "time": "noon"}, "not a time stamp"),
        ("rounds", {"round": 1, "run_id": "b"}, "a row of run 'b' in the writer of 'a'"),
        ("runs", {"method": "fedavg"}, "call update_run"),
        ("clients", {"round": 1, "client_id": 2**70}, "does not fit"),
        ("predictions", {"round": 1, "sample": [1, 2], "label": [1]}, "needs a value|different"),
    ],
)
def test_wrong_rows_are_refused_by_name(tmp_path: Path, table: str, row: dict, message: str):
    with pytest.raises(ResultsError, match=message):
        TableWriter(tmp_path, "a").append(table, [row])


def test_arrays_of_different_lengths_are_refused(tmp_path: Path):
    with pytest.raises(ResultsError, match="different lengths"):
        TableWriter(tmp_path, "a").append("rounds", {"round": [1, 2], "accuracy": [0.1]})


def test_a_refused_row_leaves_the_table_as_it_was(tmp_path: Path):
    writer = TableWriter(tmp_path, "a")
    writer.append("rounds", rounds(0, 0))
    with pytest.raises(ResultsError):
        writer.append("rounds", [{"round": 1}, {"round": "x"}])
    writer.close()
    assert load(tmp_path).rounds["round"].tolist() == [0]


@pytest.mark.parametrize("run_id", ["", ".a", "a/b", "../a", "a-0001", "a b", "-a"])
def test_run_ids_that_are_no_file_names_are_refused(tmp_path: Path, run_id: str):
    with pytest.raises(ResultsError, match="cannot be a file name"):
        TableWriter(tmp_path, run_id)


def test_status_and_phase_have_known_values_only(tmp_path: Path):
    writer = TableWriter(tmp_path, "a")
    with pytest.raises(ResultsError, match="'status' is 'done'; allowed: running, finished"):
        writer.update_run(status="done")
    with pytest.raises(ResultsError, match="did you mean 'method'"):
        writer.update_run(metod="x")


def test_update_run_adds_up_and_replaces_the_configuration(tmp_path: Path):
    writer = TableWriter(tmp_path, "a")
    writer.update_run(config={"x": 1, "y": 2}, method="fedavg", status="running")
    writer.commit()
    writer.update_run(config={"y": 3}, status="finished")
    writer.close()
    run = load(tmp_path).runs.iloc[0]
    assert (run["method"], run["status"], run["config.y"]) == ("fedavg", "finished", 3)
    assert "config.x" not in run


def test_large_tables_are_sealed_and_merged_at_the_end(tmp_path: Path):
    writer = TableWriter(tmp_path, "a", seal_rows=10)
    for r in range(25):
        writer.append("rounds", rounds(r, r))
        writer.commit()
    assert names_in(tmp_path / "rounds") == ["a-0001.parquet", "a-0002.parquet", "a.parquet"]
    assert load(tmp_path).rounds["round"].tolist() == list(range(25))
    writer.close()
    assert names_in(tmp_path / "rounds") == ["a.parquet"]
    assert load(tmp_path).rounds["round"].tolist() == list(range(25))
    with pytest.raises(ResultsError, match="closed"):
        writer.append("rounds", rounds(25, 25))


@pytest.mark.parametrize("last", [-1, 0, 4, 5, 11, 12, 99])
def test_truncate_drops_later_rounds_whatever_part_they_are_in(tmp_path: Path, last: int):
    writer = TableWriter(tmp_path, "a", seal_rows=5)
    writer.update_run(method="fedavg")
    for r in range(13):
        writer.append("rounds", rounds(r, r))
        writer.append("events", [{"round": r, "kind": "note"}, {"round": None, "kind": "always"}])
        writer.commit()
    resumed = TableWriter(tmp_path, "a", seal_rows=5)
    with pytest.raises(ResultsError, match="call truncate"):
        resumed.append("rounds", rounds(0, 0))
    resumed.truncate(last)
    kept = list(range(min(last, 12) + 1))
    assert load(tmp_path).rounds["round"].tolist() == kept
    resumed.append("rounds", rounds(len(kept), 20))
    resumed.close()
    study = load(tmp_path)
    assert study.rounds["round"].tolist() == list(range(21))
    assert study.events["round"].dropna().tolist() == kept
    assert study.events["kind"].eq("always").sum() == 13
    assert names_in(tmp_path / "rounds") == ["a.parquet"]


def test_starting_anew_keeps_only_what_this_process_set(tmp_path: Path):
    with TableWriter(tmp_path, "a") as writer:
        writer.update_run(config={"x": 1}, error="boom", method="fedavg")
    writer = TableWriter(tmp_path, "a")
    writer.update_run(ray_version="2.50")
    writer.truncate(-1)
    writer.close()
    run = load(tmp_path).runs.iloc[0]
    assert run["ray_version"] == "2.50"
    assert pd.isna(run["error"])
    assert "config.x" not in run


def test_a_resumed_run_keeps_its_row_and_its_part_of_others_is_untouched(tmp_path: Path):
    for run_id in ("a", "a-b", "a-0001x"):
        with TableWriter(tmp_path, run_id) as writer:
            writer.update_run(method=f"m-{run_id}")
            writer.append("rounds", rounds(0, 3))
    with TableWriter(tmp_path, "a") as writer:
        writer.truncate(1)
        writer.update_run(num_resumes=1)
    study = load(tmp_path)
    assert study.rounds.groupby("run_id")["round"].max().to_dict() == {
        "a": 1,
        "a-b": 3,
        "a-0001x": 3,
    }
    assert study.runs.set_index("run_id")["method"].to_dict()["a"] == "m-a"


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 7), st.sampled_from(["go on", "commit", "reopen", "cut"])),
        max_size=8,
    ),
    seal_rows=st.integers(1, 20),
)
def test_what_is_committed_is_what_a_list_would_hold(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]], seal_rows: int
):
    folder = tmp_path_factory.mktemp("study")
    writer = TableWriter(folder, "a", seal_rows=seal_rows)
    expected: list[int] = []
    saved: list[int] = []
    for number, (count, action) in enumerate(steps):
        new = [{"round": number, "client_id": i, "num_samples": 10 * i} for i in range(count)]
        writer.append("clients", new)
        expected += [number] * count
        if action == "commit":
            writer.commit()
            saved = list(expected)
        elif action == "reopen":
            writer.close()
            writer = TableWriter(folder, "a", seal_rows=seal_rows)
            writer.truncate(number)
            saved = list(expected)
        elif action == "cut":
            writer.truncate(number - 2)
            expected = [r for r in expected if r <= number - 2]
            saved = list(expected)
            writer.commit()
        on_disk = load(folder).clients["round"].tolist()
        assert on_disk[: len(saved)] == saved
    writer.close()
    assert load(folder).clients["round"].tolist() == expected
    assert len(list(folder.glob("clients/*"))) <= 1


def test_a_broken_file_is_named(tmp_path: Path):
    with TableWriter(tmp_path, "a") as writer:
        writer.append("rounds", rounds(0, 1))
    files.open_path(tmp_path / "rounds", "a").write_bytes(b"PAR1 half")
    with pytest.raises(ResultsError, match=r"rounds.a\.parquet is not a readable Parquet file"):
        _ = load(tmp_path).rounds


def test_a_lost_part_is_named(tmp_path: Path):
    writer = TableWriter(tmp_path, "a", seal_rows=2)
    for r in range(5):
        writer.append("rounds", rounds(r, r))
        writer.commit()
    files.sealed_path(tmp_path / "rounds", "a", 1).unlink()
    with pytest.raises(ResultsError, match=r"a-0001\.parquet is missing"):
        _ = load(tmp_path).rounds


def test_synthetic_images_are_checked(tmp_path: Path):
    good = np.zeros((2, 4, 4, 3), np.uint8)
    save = TableWriter(tmp_path, "r").save_images
    with pytest.raises(ResultsError, match="uint8"):
        save("a", good.astype(float), np.array([0, 1]), ["x", "y"])
    with pytest.raises(ResultsError, match="labels of shape"):
        save("a", good, np.array([0]), ["x", "y"])
    save("a", good, np.array([0, 1]), ["x", "y"])
    assert (tmp_path / "images" / "a.npz").is_file()
