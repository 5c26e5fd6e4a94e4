import shutil
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import ResultsError
from fedsim.results.tables.equality import equal_results
from fedsim.results.tables.writer import TableWriter


def write(folder: Path, order: int = 1, run_id: str = "a", study: str = "s", **changes: object):
    with TableWriter(folder, run_id) as writer:
        writer.update_run(
            config={"actors": order}, study=study, method="fedavg", dataset="d", seed=0,
            partition="iid", status="finished", node=f"n{order}",
        )  # fmt: skip
        values = {"accuracy": 0.1 + 0.2, "loss": float("nan"), "bytes_up": 2**53} | changes
        rows = [{"round": r, "train_s": float(order)} | values for r in range(4)]
        writer.append("rounds", rows[::order])
        counts = [{"round": 0, "client_id": c, "label_counts": [c, 1]} for c in range(3)]
        writer.append("clients", counts[::order])
        writer.append("events", [{"kind": "note", "message": str(order)}])
    return folder


def test_order_of_rows_and_measured_values_do_not_matter(tmp_path: Path):
    a = write(tmp_path / "a")
    assert equal_results(a, write(tmp_path / "b", order=-1, study="other")) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("accuracy", np.nextafter(0.1 + 0.2, 1)),
        ("accuracy", None),
        ("loss", 0.5),
        ("bytes_up", 2**53 + 1),
        ("virtual_s", -0.0),
    ],
)
def test_one_bit_is_a_difference(tmp_path: Path, column: str, value: float):
    a = write(tmp_path / "a", virtual_s=0.0)
    b = write(tmp_path / "b", **({"virtual_s": 0.0} | {column: value}))
    differences = equal_results(a, b)
    assert len(differences) == 1
    assert differences[0].startswith(f"rounds.{column}: 4 rows differ, e.g. run_id a, round 0: ")


def test_missing_and_extra_rows_are_named(tmp_path: Path):
    a, b = write(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(a, b)
    with TableWriter(b, "a") as writer:
        writer.truncate(2)
        writer.append("clients", [{"round": 1, "client_id": 7, "label_counts": None}])
    found = equal_results(a, b)
    assert found == [
        "rounds: 1 rows only in the first, e.g. run_id a, round 3",
        "clients: 1 rows only in the second, e.g. run_id a, round 1, client_id 7",
    ]


def test_label_counts_are_compared(tmp_path: Path):
    a, b = write(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(a, b)
    with TableWriter(b, "a") as writer:
        writer.truncate(-1)
        writer.append("clients", [{"round": 0, "client_id": 1, "label_counts": [1, 2]}])
    text = "\n".join(equal_results(a, b))
    assert "clients.label_counts: 1 rows differ" in text
    assert "[1 1] and [1 2]" in text


def test_the_same_row_twice_is_not_the_same_as_once(tmp_path: Path):
    a, b = write(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(a, b)
    with TableWriter(b, "a") as writer:
        writer.truncate(9)
        writer.append("rounds", [{"round": 3, "accuracy": 0.1 + 0.2, "bytes_up": 2**53}])
    assert equal_results(a, b)[0].startswith("rounds: 1 rows only in the second")


def test_runs_of_other_configurations_can_be_matched_by_cell(tmp_path: Path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", order=-1, run_id="z")
    assert equal_results(a, b) != []
    assert equal_results(a, b, match="cell") == []
    write(a, run_id="again")
    with pytest.raises(ResultsError, match="more than one run of method=fedavg"):
        equal_results(a, b, match="cell")


def test_a_missing_folder_equals_nothing(tmp_path: Path):
    with pytest.raises(ResultsError, match="there is no study"):
        equal_results(tmp_path, tmp_path / "nowhere")


def test_empty_studies_are_equal(tmp_path: Path):
    assert equal_results(tmp_path, tmp_path) == []
