"""The files behind one table of one run, and why a reader never sees half of them.

    <study>/<table>/<run_id>.parquet        the open part, rewritten at every commit
    <study>/<table>/<run_id>-0001.parquet   sealed parts, each once an open part that grew large

Every file is written under a temporary name and renamed. Sealing is a rename of the open part, so
no row is ever in two files. The open part's metadata says how many sealed parts come before it
(`AFTER`). Readers ignore sealed parts beyond that number: a killed merge or truncation left them.
Temporary files start with a dot, which Parquet readers skip.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.errors import ResultsError
from fedsim.results.tables.schema import arrow_schema, table_named
from fedsim.storage.atomic import whole_file

AFTER = b"fedsim.sealed_parts_before"
_SEALED = re.compile(r"^(?P<run_id>.+)-(?P<number>\d{4})\.parquet$")
_RUN_ID = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
_READ_ATTEMPTS = 50


def check_run_id(run_id: str) -> None:
    """Refuse a run id that cannot be a file name of its own.

    Raises:
        ResultsError: It has odd characters, or ends like a sealed part (`-0001`).
    """
    if not _RUN_ID.match(run_id) or _SEALED.match(f"{run_id}.parquet"):
        raise ResultsError(
            f"run id {run_id!r} cannot be a file name: use letters, digits, '_', '.' and '-', "
            "and no ending of '-' and four digits"
        )


def open_path(folder: Path, run_id: str) -> Path:
    """Where the open part of a run lies."""
    return folder / f"{run_id}.parquet"


def sealed_path(folder: Path, run_id: str, number: int) -> Path:
    """Where the sealed part `number`, counted from 1, of a run lies."""
    return folder / f"{run_id}-{number:04d}.parquet"


def runs_in(folder: Path) -> list[str]:
    """The run ids that have rows in a table's folder, sorted."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".parquet")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted({run_of(name) for name in names if not name.startswith(".")})


def run_of(name: str) -> str:
    """The run that a file belongs to, by its name."""
    sealed = _SEALED.match(name)
    return sealed["run_id"] if sealed else name.removesuffix(".parquet")


def sealed_numbers(folder: Path, run_id: str) -> list[int]:
    """Numbers of the sealed parts of a run, sorted."""
    numbers = []
    for path in folder.glob(f"{run_id}-*.parquet"):
        sealed = _SEALED.match(path.name)
        if sealed and sealed["run_id"] == run_id:
            numbers.append(int(sealed["number"]))
    return sorted(numbers)


def write(path: Path, table: pa.Table, after: int, durable: bool, compact: bool = False) -> None:
    """Put `table` at `path` in one step.

    Args:
        path: Final name.
        table: The rows.
        after: Number of sealed parts that come before this one.
        durable: Wait for the disk before the rename.
        compact: Spend time on a smaller file, if it is written once.
    """
    table = table.replace_schema_metadata({AFTER: str(after)})
    words = [field.name for field in table.schema if field.type == pa.string()]
    sink = pa.BufferOutputStream()
    if compact:
        pq.write_table(table, sink, compression="zstd")
    else:
        pq.write_table(table, sink, use_dictionary=words, write_statistics=False)
    with whole_file(path, durable) as file:
        file.write(sink.getvalue())


@dataclass(frozen=True)
class RunRows:
    """The rows of one run in one table, in the order they were written."""

    sealed: list[pa.Table]
    opened: pa.Table | None

    def table(self) -> pa.Table:
        """All rows as one table."""
        tables = self.sealed + ([] if self.opened is None else [self.opened])
        plain = [table.replace_schema_metadata(None) for table in tables]
        return pa.concat_tables(plain, promote_options="default")


def read_run(folder: Path, run_id: str, columns: Sequence[str] | None = None) -> RunRows | None:
    """The rows of one run in a table's folder, while another process may be writing them.

    Returns:
        The rows, with `columns` alone if they are given; None if the run has no file here.

    Raises:
        ResultsError: A file cannot be read, or parts are missing.
    """
    problem = "its files keep changing"
    for attempt in range(_READ_ATTEMPTS):
        if attempt:
            time.sleep(0.001 * attempt)
        try:
            opened = read_file(open_path(folder, run_id), columns)
        except FileNotFoundError:
            opened = None
        if opened is not None:
            before = int((opened.schema.metadata or {}).get(AFTER, b"0"))
        elif not (before := len(sealed_numbers(folder, run_id))):
            if attempt < 2:  # the open part may just be on its way to a sealed name
                continue
            return None
        try:
            paths = [sealed_path(folder, run_id, number) for number in range(1, 1 + before)]
            sealed = [read_file(path, columns) for path in paths]
        except FileNotFoundError as error:
            problem = f"{Path(error.filename).name} is missing"
            continue
        if opened is None and open_path(folder, run_id).exists():
            continue  # written or merged while we read
        return RunRows(sealed, opened)
    raise ResultsError(f"cannot read run {run_id} in {folder}: {problem}")


def conform(table: pa.Table, name: str) -> pa.Table:
    """`table` with exactly the columns of the schema, in order, then its `config.*` columns."""
    fields = list(arrow_schema(name))
    if table_named(name).has_config:
        known = {field.name for field in fields}
        fields += [field for field in table.schema if field.name not in known]
    return pa.table([_column(table, field) for field in fields], schema=pa.schema(fields))


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    """One column in the type wanted; nulls if the table lacks it. A needless cast would copy."""
    place = table.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(table.num_rows, field.type)
    column = table.column(place)
    return column if column.type == field.type else column.cast(field.type)


def remove(paths: Iterable[Path]) -> None:
    """Delete files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)


def read_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A file's rows, of all columns or of those named that it has.

    Raises:
        FileNotFoundError: There is no such file.
        ResultsError: It cannot be read as Parquet.
    """
    with open(path, "rb") as file:  # one descriptor: a rename meanwhile does no harm
        try:
            stored = pq.ParquetFile(file)
            if columns is not None:
                columns = [name for name in columns if name in stored.schema_arrow.names]
            return stored.read(columns=columns)
        except pa.ArrowException as error:
            raise ResultsError(
                f"{path} is not a readable Parquet file ({error}); "
                "delete it, then run the experiment again to fill the gap"
            ) from error
