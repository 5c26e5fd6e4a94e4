"""Rows to Arrow: names and types are checked, and an error names table, column, row and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from fedsim.errors import ResultsError
from fedsim.results.tables.columns import Column
from fedsim.results.tables.schema import arrow_schema, table_named

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Any]


def to_batch(name: str, rows: Rows, run_id: str) -> pa.RecordBatch:
    """Rows of a table as Arrow.

    Args:
        name: The table.
        rows: A list of rows, or a mapping of column names to arrays of equal length; single values
            in it are repeated.
        run_id: Filled in where a row has none.

    Raises:
        ResultsError: A column is unknown, a value has the wrong type, a required one is missing, or
            the arrays have different lengths.
    """
    table = table_named(name)
    if isinstance(rows, Mapping):
        columns, num_rows = _repeat(name, rows)
    else:
        names = {column for row in rows for column in row}
        columns = {column: [row.get(column) for row in rows] for column in names}
        num_rows = len(rows)
    for column_name in columns:
        table.column(column_name)
    given = columns.get("run_id", [run_id] * num_rows)
    columns["run_id"] = [run_id if value is None else value for value in given]
    for value in columns["run_id"]:
        if value != run_id:
            raise ResultsError(
                f"table {name!r}: a row of run {value!r} in the writer of {run_id!r}"
            )
    arrays = [
        cell_array(name, column, columns.get(column.name, [None] * num_rows))
        for column in table.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(name))


def cell_array(name: str, column: Column, values: Sequence[Any]) -> pa.Array:
    """The values of one column as an Arrow array of the column's type.

    Raises:
        ResultsError: A value does not fit the column.
    """
    if column.type == "timestamp":
        values = [_utc(value) for value in values]
    if column.type == "int64" and (fraction := _first_float(values)) is not None:
        raise ResultsError(
            f"table {name!r}, column {column.name!r} (int64): {fraction!r} is not a whole number"
        )
    try:
        array = pa.array(values, type=column.arrow_type())
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ResultsError(f"{_culprit(name, column, values)}: {error}") from error
    if column.required and array.null_count:
        row = array.is_null().to_pylist().index(True)
        raise ResultsError(f"table {name!r}, row {row}: column {column.name!r} needs a value")
    if column.choices:
        for value in array.to_pylist():
            if value is not None and value not in column.choices:
                allowed = ", ".join(column.choices)
                raise ResultsError(
                    f"table {name!r}, column {column.name!r} is {value!r}; allowed: {allowed}"
                )
    return array


def _first_float(values: Sequence[Any]) -> float | None:
    """The first float among whole numbers; Arrow would truncate it, 1.9 to 1."""
    if isinstance(values, np.ndarray):
        return float(values[0]) if values.dtype.kind == "f" and len(values) else None
    floats = (value for value in values if isinstance(value, (float, np.floating)))
    return next((float(value) for value in floats), None)


def _repeat(name: str, columns: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Columns of equal length: arrays stay, single values are repeated."""
    single = {key for key, value in columns.items() if _is_single(value)}
    lengths = {key: len(value) for key, value in columns.items() if key not in single}
    if len(set(lengths.values())) > 1:
        raise ResultsError(f"table {name!r}: columns of different lengths: {lengths}")
    num_rows = next(iter(lengths.values()), 1)
    repeated = {
        key: [value] * num_rows if key in single else value for key, value in columns.items()
    }
    return repeated, num_rows


def _is_single(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return False
    return isinstance(value, str) or not hasattr(value, "__len__") or np.ndim(value) == 0


def _utc(value: Any) -> datetime | None:
    """A moment: an aware datetime, or seconds since 1970 as `time.time()` gives them."""
    if value is None:
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ResultsError(f"time stamp {value} has no time zone; use datetime.now(UTC)")
        return value.astimezone(UTC)
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC)
    raise ResultsError(f"{value!r} is not a time stamp; use datetime.now(UTC) or time.time()")


def _culprit(name: str, column: Column, values: Sequence[Any]) -> str:
    for row, value in enumerate(values):
        try:
            pa.array([value], type=column.arrow_type())
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            kind = type(value).__name__
            where = f"table {name!r}, row {row}, column {column.name!r} ({column.type})"
            return f"{where}: {value!r} ({kind}) does not fit"
    return f"table {name!r}, column {column.name!r} ({column.type})"
