"""One file that repeats what many runs' files say, so that thousands of runs are read at once.

    <study>/<table>/.digest.parquet    rows of settled files, with their times and sizes

It is written by readers, when many files are new to it, and can be deleted at any time: a run whose
file has changed since, or is gone, is not taken from here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.results.tables import files
from fedsim.results.tables.schema import arrow_schema
from fedsim.storage.atomic import whole_file

__all__ = ["read_table"]

_NAME = ".digest.parquet"
_RUNS = b"fedsim.digest_of"
_MANY = 64
"""New files from which on the digest is written anew."""
_SETTLED_S = 10.0
"""Younger files may change again within the resolution of their time stamps."""

_Stamp = tuple[int, int]
"""A file's modification time, in ns, and its size."""


@dataclass(frozen=True)
class _Digest:
    """Rows of some runs, one run after the other.

    Attributes:
        table: All of them.
        rows: Per run, its file's stamp, its first row and how many it has.
    """

    table: pa.Table
    rows: dict[str, tuple[_Stamp, int, int]]

    def knows(self, run_id: str, stamp: _Stamp | None) -> bool:
        """Whether a run's file is still what was read."""
        return run_id in self.rows and self.rows[run_id][0] == stamp

    def slice(self, first: str, last: str) -> pa.Table:
        """The rows of runs that follow each other."""
        _, start, _ = self.rows[first]
        _, end, count = self.rows[last]
        return self.table.slice(start, end + count - start)


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All runs' rows of a table, by run id, with the columns of its schema.

    Args:
        folder: Of the table.
        name: Of the table.
        columns: Read no more than these; by default all.

    Raises:
        ResultsError: A file cannot be read.
    """
    run_ids, stamps = files.runs_in(folder), _stamps(folder)
    known = _read(folder, columns)
    unknown = [run for run in run_ids if not known.knows(run, stamps.get(run))]
    if len([run for run in unknown if run in stamps]) >= _MANY:
        known = _write(folder, name, unknown, stamps)
    tables = [arrow_schema(name).empty_table()]
    for is_known, runs in _stretches(run_ids, known, stamps):
        if is_known:
            tables.append(known.slice(runs[0], runs[-1]))
        else:
            found = [files.read_run(folder, run, columns) for run in runs]
            tables += [part.table() for part in found if part is not None]
    return files.conform(pa.concat_tables(tables, promote_options="permissive"), name)


def _stretches(
    run_ids: Sequence[str], known: _Digest, stamps: dict[str, _Stamp]
) -> Iterator[tuple[bool, list[str]]]:
    """Runs in order, cut where the digest has others between them, or does not know them."""
    place = {run: number for number, run in enumerate(known.rows)}
    keyed = [
        (run, place[run] - at if known.knows(run, stamps.get(run)) else None)
        for at, run in enumerate(run_ids)
    ]
    for offset, stretch in groupby(keyed, lambda pair: pair[1]):
        yield offset is not None, [run for run, _ in stretch]


def _stamps(folder: Path) -> dict[str, _Stamp]:
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
                    found[run_id] = stat.st_mtime_ns, stat.st_size
    return {run: stamp for run, stamp in found.items() if run not in sealed}


def _read(folder: Path, columns: Sequence[str] | None) -> _Digest:
    """The digest as it lies there; an empty one where there is none, or none that can be read."""
    with suppress(OSError, pa.ArrowException, ValueError, KeyError):
        with open(folder / _NAME, "rb") as file:
            stored = pq.ParquetFile(file)
            if columns is not None:
                columns = [name for name in columns if name in stored.schema_arrow.names]
            table = stored.read(columns=columns)
        listed = json.loads(table.schema.metadata[_RUNS])
        rows = {run: ((time_ns, size), at, n) for run, time_ns, size, at, n in listed}
        return _Digest(table.replace_schema_metadata(None), rows)
    return _Digest(pa.table({}), {})


def _write(folder: Path, name: str, unknown: Sequence[str], stamps: dict[str, _Stamp]) -> _Digest:
    """A digest of all runs of one settled file each; in memory alone if it cannot be written."""
    old = _read(folder, None)
    tables, rows, at = [arrow_schema(name).empty_table()], {}, 0
    new = set(unknown)
    for run in sorted(stamps):
        if run in new:
            found = files.read_run(folder, run)
            if found is None or found.sealed:
                continue
            table = found.table()
        elif old.knows(run, stamps[run]):
            table = old.slice(run, run)
        else:
            continue
        tables.append(table)
        rows[run] = stamps[run], at, table.num_rows
        at += table.num_rows
    whole = files.conform(pa.concat_tables(tables, promote_options="permissive"), name)
    whole = whole.combine_chunks()
    listed = json.dumps([[run, *stamp, start, n] for run, (stamp, start, n) in rows.items()])
    with suppress(OSError), whole_file(folder / _NAME) as file:
        pq.write_table(whole.replace_schema_metadata({_RUNS: listed}), file, compression="zstd")
    return _Digest(whole, rows)
