from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.cli.app import main
from fedsim.driver.plan import unfinished
from fedsim.errors import ResultsError
from fedsim.results.study import load
from fedsim.results.tables import archive, files
from fedsim.results.tables.equality import equal_results
from tests.helpers import experiment, run
from tests.results.conftest import write_run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Five finished runs with settings of their own, and one that is half-way."""
    folder = tmp_path / "shapes_study"
    for method in ("fedavg", "cachefl"):
        for seed in (0, 1):
            write_run(folder, method, "iid", None, seed, config={method: {"rate": seed}})
    write_run(folder, "zero_shot", "iid", None, 0)
    write_run(folder, "feddgm", "iid", None, 0, last_round=3, status="interrupted")
    return folder


def test_what_was_packed_is_what_comes_out(study: Path, tmp_path: Path):
    file, there = tmp_path / "kept.zip", tmp_path / "elsewhere" / study.name
    assert archive.pack(study, file) == 5
    assert len(archive.unpack(file, there).written) == 5
    before, after = load(study), load(there)
    assert set(before.runs["run_id"]) - set(after.runs["run_id"]) == {
        run_id for run_id in before.runs["run_id"] if run_id.startswith("feddgm")
    }
    for name in ("runs", "rounds", "evaluations", "clients", "synthetic"):
        old, new = getattr(before, name), getattr(after, name)
        old = old[old["run_id"].isin(after.runs["run_id"])].reset_index(drop=True)
        of_the_machine = [c for c in ("node", "command", "error") if c in old]
        assert not new[of_the_machine].notna().any(axis=None)
        pd.testing.assert_frame_equal(
            old.drop(columns=of_the_machine), new.drop(columns=of_the_machine)
        )
    shown = ["method", "accuracy_mean", "accuracy_high", "p_holm", "bytes_total"]
    old = before.summary("fedavg")[shown]
    new = after.summary("fedavg")[shown].reset_index(drop=True)
    pd.testing.assert_frame_equal(old[old["method"] != "feddgm"].reset_index(drop=True), new)


def test_equal_tables_are_equal_files(study: Path, tmp_path: Path):
    one, two = tmp_path / "1.zip", tmp_path / "2.zip"
    archive.pack(study, one)
    archive.unpack(one, tmp_path / "there")
    archive.pack(tmp_path / "there", two)
    assert one.read_bytes() == two.read_bytes()


def test_settings_that_a_run_lacks_are_not_written(study: Path, tmp_path: Path):
    archive.pack(study, tmp_path / "kept.zip")
    archive.unpack(tmp_path / "kept.zip", tmp_path / "there")
    for run_id in files.runs_in(tmp_path / "there" / "runs"):
        old, new = (files.read_run(f / "runs", run_id) for f in (study, tmp_path / "there"))
        assert old is not None
        assert new is not None
        columns = [c for c in new.table().column_names if c.startswith("config.")]
        assert columns == [c for c in old.table().column_names if c.startswith("config.")]


def test_nothing_tells_of_the_machine(tmp_path: Path):
    settings = {
        "data": {"path": "/far/ada/data/digits.npz", "name": "digits"},
        "distill": {"prior": "priors/mine.py:make"},
        "working_dir": "/far/ada/fedsim",
        "options": {"files": ["/far/ada/a.txt", {"b": "/far/ada/b.txt"}]},
    }
    columns = {"node": "ada-laptop", "command": "fedsim sweep /far/ada/study.yaml"}
    folder = tmp_path / "study"
    write_run(folder, "fedavg", "iid", None, 0, config=settings, **columns)
    archive.pack(folder, tmp_path / "kept.zip")
    with zipfile.ZipFile(tmp_path / "kept.zip") as stored:
        assert all(info.date_time[0] == 1980 for info in stored.infolist())
    archive.unpack(tmp_path / "kept.zip", tmp_path / "there")
    (row,) = load(tmp_path / "there").runs.to_dict("records")
    assert "ada" not in str(row)
    assert not (tmp_path / "there" / "events").exists()
    assert row["config.data.path"] == "digits.npz"
    assert row["config.distill.prior"] == "priors/mine.py:make"


def test_runs_that_are_there_stay_as_they_are(study: Path, tmp_path: Path):
    archive.pack(study, tmp_path / "kept.zip")
    there = tmp_path / study.name
    before = {path: path.read_bytes() for path in there.rglob("*.parquet")}
    written, known = archive.unpack(tmp_path / "kept.zip", there)
    assert (len(written), len(known)) == (0, 5)
    assert {path: path.read_bytes() for path in there.rglob("*.parquet")} == before


def test_unpacking_that_was_killed_is_done_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At whatever file: no run is there before all its rows are."""
    archive.pack(study, tmp_path / "kept.zip")
    write, whole = files.write, tmp_path / "whole"
    archive.unpack(tmp_path / "kept.zip", whole)
    count = len(list(whole.rglob("*.parquet")))
    for survives in range(count):
        left, there = [survives], tmp_path / str(survives)

        def dying(*args: Any, left: list[int] = left, **kwargs: Any) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(*args, **kwargs)

        monkeypatch.setattr(files, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            archive.unpack(tmp_path / "kept.zip", there)
        monkeypatch.setattr(files, "write", write)
        archive.unpack(tmp_path / "kept.zip", there)
        assert equal_results(load(whole), load(there)) == []


def test_a_study_goes_on_from_what_was_packed(tmp_path: Path):
    cells = [
        experiment("digits", "fedavg", seed=seed, train__rounds=1, data__max_train_samples=100)
        for seed in (0, 1)
    ]
    folder = run(cells[0], tmp_path / "first")
    archive.pack(folder, tmp_path / "kept.zip")
    archive.unpack(tmp_path / "kept.zip", tmp_path / "second")
    assert unfinished(tmp_path / "second", cells) == cells[1:]


def test_files_that_are_none_are_refused(study: Path, tmp_path: Path):
    missing, text, empty = tmp_path / "no.zip", tmp_path / "text.zip", tmp_path / "empty.zip"
    text.write_text("not a zip file")
    zipfile.ZipFile(empty, "w").close()
    for file in (missing, text, empty):
        with pytest.raises(ResultsError, match=file.name):
            archive.unpack(file, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    write_run(tmp_path / "young", "feddgm", "iid", None, 0, last_round=3, status="running")
    with pytest.raises(ResultsError, match=r"no run of .*young has finished"):
        archive.pack(tmp_path / "young", tmp_path / "young.zip")
    with pytest.raises(ResultsError, match="cannot write"):
        archive.pack(study, tmp_path / "nowhere" / "kept.zip")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("study", "../outside", "no folder's name"),
        ("run_id", "../outside", "cannot be a file name"),
    ],
)
def test_a_file_cannot_write_outside_its_folder(
    column: str, value: str, said: str, study: Path, tmp_path: Path
):
    archive.pack(study, tmp_path / "kept.zip")
    with zipfile.ZipFile(tmp_path / "kept.zip") as stored:
        tables = {n: pq.read_table(io.BytesIO(stored.read(n))) for n in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as stored:
        for name, table in tables.items():
            if column in table.column_names:
                place = table.schema.get_field_index(column)
                table = table.set_column(place, column, pa.array([value] * len(table)))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            stored.writestr(name, sink.getvalue().to_pybytes())
    there = tmp_path / "there"
    read = archive.study_in if column == "study" else partial(archive.unpack, folder=there)
    with pytest.raises(ResultsError, match=said):
        read(tmp_path / "bad.zip")
    assert not there.exists()


def test_the_commands(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    codes: list[int] = []
    main(["pack", study.name, "kept.zip"], codes.append)
    main(["unpack", "kept.zip"], codes.append)
    main(["unpack", "kept.zip"], codes.append)
    main(["unpack", "none.zip"], codes.append)
    said = capsys.readouterr()
    assert codes == [0, 0, 0, 7]
    assert "5 finished runs in kept.zip" in said.out
    assert "5 runs written into runs/shapes_study, 0 were there already" in said.out
    assert "0 runs written into runs/shapes_study, 5 were there already" in said.out
    assert "cannot read none.zip" in said.err
    main(["unpack", "kept.zip", "s3://bucket/runs"], codes.append)
    assert codes[-1] == 7
    assert "is a URL" in capsys.readouterr().err
