"""A study's finished runs in one small file: to publish beside a paper, or to go on elsewhere.

    <file>.zip
        runs.parquet, rounds.parquet, ...    one file per table, rows of finished runs, by run id

The large parts of a study's folder stay behind: checkpoints, images, and predictions of single
samples. So do facts about the machine: events with their tracebacks, command lines, names of hosts,
and all but the last part of absolute paths. Equal tables give an equal file, byte for byte.
Unpacked into a study's folder, the runs are finished there too: a sweep of the same settings runs
only the missing ones.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedsim.errors import ResultsError
from fedsim.results.tables import files
from fedsim.results.tables.columns import CONFIG_PREFIX
from fedsim.results.tables.many_runs import read_table
from fedsim.results.tables.schema import TABLES
from fedsim.storage.atomic import whole_file

_LEFT_OUT = ("events", "predictions")
_NAMES = [*(name for name in TABLES if name not in ("runs", *_LEFT_OUT)), "runs"]
"""In the order of unpacking: `runs` last, for its row says that a run is whole."""
_OF_THE_MACHINE = ("command", "error", "node")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


class Unpacked(NamedTuple):
    """Run ids that were written, and run ids that the folder knew already."""

    written: list[str]
    known: list[str]


def pack(folder: Path, file: Path) -> int:
    """Write the finished runs of a study's folder into a file; one that is there is replaced.

    Returns:
        How many runs.

    Raises:
        ResultsError: No run has finished, or the file cannot be written.
    """
    runs = read_table(folder / "runs", "runs")
    finished = runs.filter(pc.equal(runs["status"], "finished"))["run_id"].combine_chunks()
    if not len(finished):
        raise ResultsError(f"no run of {folder} has finished: there is nothing to pack")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as stored:
        for name in _NAMES:
            table = read_table(folder / name, name)
            table = _elsewhere(table.filter(pc.is_in(table["run_id"], finished)))
            if len(table):
                stored.writestr(zipfile.ZipInfo(f"{name}.parquet", _LONG_AGO), _bytes(table))
    try:
        with whole_file(file) as sink:
            sink.write(content.getvalue())
    except OSError as error:
        raise ResultsError(f"cannot write {file}: {error.strerror}") from error
    return len(finished)


def study_in(file: Path) -> str:
    """Name of the study whose runs a file holds.

    Raises:
        ResultsError: The file holds no runs, or those of several studies.
    """
    runs = files.conform(_read(file)["runs"], "runs")
    names = runs["study"].unique().to_pylist()
    if len(names) != 1:
        several = ", ".join(map(str, names))
        raise ResultsError(f"{file} does not hold one study but [{several}]: name a folder")
    name = str(names[0])
    if name in (".", "..") or PurePath(name).name != name:
        raise ResultsError(f"{file} calls its study {name!r}, which is no folder's name: name one")
    return name


def check_folder(folder: Path) -> None:
    """Refuse a URL, since object storage commits run by run.

    Raises:
        ResultsError: The folder is a URL.
    """
    if ":/" in str(folder):
        raise ResultsError(
            f"{folder} is a URL: unpack into a folder of this machine, then copy it there"
        )


def unpack(file: Path, folder: Path) -> Unpacked:
    """Write the runs of a file into a study's folder, which may be new.

    Runs that the folder has, finished or not, stay as they are. After a kill it can be done again:
    a run is known once all its rows are there.

    Raises:
        ResultsError: The file holds no runs.
    """
    tables = _read(file)
    for table in tables.values():
        for run_id in pc.unique(table["run_id"]).to_pylist():
            files.check_run_id(str(run_id))
    there = set(files.runs_in(folder / "runs"))
    for name in _NAMES:
        if name == "runs":
            os.sync()  # once for all rows: to wait file by file takes minutes on a busy disk
        for run_id, rows in _by_run(tables[name]) if name in tables else ():
            if run_id in there:
                continue
            (folder / name).mkdir(parents=True, exist_ok=True)
            path = files.open_path(folder / name, run_id)
            files.write(path, rows, after=0, durable=False, compact=True)
    ids = tables["runs"]["run_id"].to_pylist()
    return Unpacked([i for i in ids if i not in there], [i for i in ids if i in there])


def _read(file: Path) -> dict[str, pa.Table]:
    """The tables of a file by name; anything else in it is ignored."""
    try:
        with zipfile.ZipFile(file) as stored:
            inside = [name for name in _NAMES if f"{name}.parquet" in stored.namelist()]
            found = {
                name: pq.read_table(io.BytesIO(stored.read(f"{name}.parquet"))) for name in inside
            }
    except (OSError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise ResultsError(f"cannot read {file}: {error}") from error
    if "runs" not in found or any("run_id" not in t.column_names for t in found.values()):
        raise ResultsError(f"{file} holds no runs: `fedsim pack FOLDER {file}` makes such a file")
    return found


def _by_run(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Each run's rows, in a file's order, without settings that the run does not have."""
    start = 0
    for run_id, rows in groupby(table["run_id"].to_pylist()):
        count = len(list(rows))
        own = table.slice(start, count)
        missing = [
            name
            for name in own.column_names
            if name.startswith(CONFIG_PREFIX) and own[name].null_count == count
        ]
        yield run_id, own.drop_columns(missing)
        start += count


def _elsewhere(table: pa.Table) -> pa.Table:
    """The rows without facts about the machine."""
    for place, field in enumerate(table.schema):
        if field.name in _OF_THE_MACHINE:
            column = pa.nulls(len(table), field.type)
        elif field.name.startswith(CONFIG_PREFIX):
            column = pa.array(map(_without_folders, table[field.name].to_pylist()), field.type)
        else:
            continue
        table = table.set_column(place, field, column)
    return table


def _without_folders(setting: str | None) -> str | None:
    """A setting as JSON; of an absolute path its last part."""
    if setting is None:
        return None
    value = json.loads(setting)
    shown = _last_parts(value)
    return setting if shown == value else json.dumps(shown)


def _last_parts(value: Any) -> Any:
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    if isinstance(value, list):
        return [_last_parts(one) for one in value]
    if isinstance(value, dict):
        return {key: _last_parts(one) for key, one in value.items()}
    return value


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd", compression_level=19)
    return sink.getvalue().to_pybytes()
