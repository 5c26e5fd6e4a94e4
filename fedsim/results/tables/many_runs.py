"""One file that repeats what many runs' files say, so that thousands of runs are read at once.

    <study>/<table>/.digest.parquet    rows of settled files, with their times and sizes

Readers write it when they find many new files. It can be deleted at any time. The rows of a run are
taken from it only while the run's own file is there, unchanged.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedsim.errors import ResultsError
from fedsim.results.tables import files
from fedsim.results.tables.schema import arrow_schema
from fedsim.storage.atomic import whole_file

_NAME = ".digest.parquet"
_STAMPS = b"fedsim.digest_stamps"
_MANY = 64
"""New files from which on the digest is written anew."""
_SETTLED_S = 10.0
"""Younger files may change again within the resolution of their time stamps."""

_Stamps = dict[str, list[int]]
"""Run id -> when its file was modified, in ns, and its size in bytes."""


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All runs' rows of the table in a folder, by run id, with the columns of its schema.

    Columns that are not among `columns` may be left empty, which is quicker.

    Raises:
        ResultsError: A file cannot be read.
    """
    run_ids, stamps = files.runs_in(folder), _stamps(folder)
    columns = columns and [*columns, "run_id"]
    known, listed = _read(folder, columns)
    kept = [run for run in run_ids if run in stamps and listed.get(run) == stamps[run]]
    new = sorted(set(run_ids) - set(kept))
    settled = {run: stamps[run] for run in run_ids if run in stamps}
    is_old = len(settled) - len(kept) >= _MANY
    if is_old and columns is not None:
        return read_table(folder, name)  # the digest holds all columns
    tables = [arrow_schema(name).empty_table()]
    if kept:
        tables.append(known if len(kept) == len(listed) else _of_runs(known, kept))
    found = [files.read_run(folder, run, columns) for run in new]
    tables += [part.table() for part in found if part is not None]
    rows = files.conform(pa.concat_tables(tables, promote_options="permissive"), name)
    if kept and new:
        rows = rows.sort_by("run_id")  # a stable sort: rows of a run stay in their order
    if is_old:
        _write(folder, _of_runs(rows, list(settled)), settled)
    return rows


def _of_runs(table: pa.Table, run_ids: Sequence[str]) -> pa.Table:
    return table.filter(pc.is_in(table["run_id"], pa.array(run_ids, pa.string())))


def _stamps(folder: Path) -> _Stamps:
    """Of the files of runs that lie in one file which will hardly change."""
    found, sealed = {}, set()
    latest = time.time() - _SETTLED_S
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.endswith(".parquet"):
                continue
            with suppress(FileNotFoundError):
                stat = entry.stat()
                run_id = files.run_of(entry.name)
                if f"{run_id}.parquet" != entry.name:
                    sealed.add(run_id)
                elif stat.st_mtime < latest:
                    found[run_id] = [stat.st_mtime_ns, stat.st_size]
    return {run: stamp for run, stamp in found.items() if run not in sealed}


def _read(folder: Path, columns: Sequence[str] | None) -> tuple[pa.Table, _Stamps]:
    """The digest's rows and what they were read from; empty without a readable digest."""
    with suppress(OSError, ResultsError, ValueError, KeyError):
        table = files.read_file(folder / _NAME, columns)
        listed: _Stamps = json.loads(table.schema.metadata[_STAMPS])
        return table.replace_schema_metadata(None), listed
    return pa.table({}), {}


def _write(folder: Path, rows: pa.Table, stamps: _Stamps) -> None:
    """Write the digest, if it can be written."""
    digest = rows.combine_chunks().replace_schema_metadata({_STAMPS: json.dumps(stamps)})
    with suppress(OSError), whole_file(folder / _NAME) as file:
        pq.write_table(digest, file, compression="zstd")
