"""Whether two studies computed the same, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from fedsim.errors import ResultsError
from fedsim.results.tables.reader import Tables
from fedsim.results.tables.schema import TABLES

_CELL = [name for name in TABLES["runs"].names("key") if name not in ("run_id", "study")]


def equal_results(
    a: Tables | Path | str,
    b: Tables | Path | str,
    match: Literal["run_id", "cell"] = "run_id",
) -> list[str]:
    """Compare the keys and results of two studies, bit by bit and whatever the order of rows.

    Not compared: measured columns, the `config.*` columns, the study's name, the `events` table.

    Args:
        a: A study or its folder.
        b: Another.
        match: How runs are matched: by `run_id`, or by `cell` (method, data, partition, seed) if
            their configurations differ in ways that must not matter, such as the number of actors.

    Returns:
        The differences in words, one per column and table; none when equal.

    Raises:
        ResultsError: There is no such folder, or, with `match="cell"`, two runs of one study
            share a cell.
    """
    first, second = (s if isinstance(s, Tables) else Tables(Path(s)) for s in (a, b))
    for study in (first, second):
        if not study.path.is_dir():
            raise ResultsError(f"there is no study {study.path}")
    labels = [_cells(study) if match == "cell" else None for study in (first, second)]
    differences: list[str] = []
    for name, table in TABLES.items():
        if not table.names("result"):
            continue
        frames: list[pd.DataFrame] = []
        for study, cells in zip((first, second), labels, strict=True):
            frame = getattr(study, name)[table.names("key", "result")]
            if cells is not None:
                frame = frame.assign(run_id=frame["run_id"].map(cells))
            frames.append(frame.drop(columns="study", errors="ignore"))
        keys = [key for key in table.names("key") if key != "study"]
        differences += _compare(name, frames[0], frames[1], keys)
    return differences


def _cells(study: Tables) -> dict[str, str]:
    """Run id to the label of its cell."""
    runs = study.runs
    labels = [
        ", ".join(f"{key}={value}" for key, value in zip(_CELL, row, strict=True))
        for row in runs[_CELL].astype(str).itertuples(index=False)
    ]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ResultsError(f"study {study.name} has more than one run of {twice}")
    return dict(zip(runs["run_id"], labels, strict=True))


def _compare(name: str, a: pd.DataFrame, b: pd.DataFrame, keys: list[str]) -> list[str]:
    """Differences of one table. Rows of equal keys are paired in the order of their results."""
    rows = pd.concat([a, b], ignore_index=True)
    codes = pd.DataFrame({column: pd.factorize(_exact(rows[column]))[0] for column in rows})
    codes["_side"] = np.repeat([0, 1], [len(a), len(b)])
    order = codes.sort_values(list(codes.columns)).groupby(["_side", *keys]).cumcount()
    codes["_again"], codes["_row"] = order, np.arange(len(rows))
    left, right = (codes.loc[codes["_side"] == side, [*keys, "_again", "_row"]] for side in (0, 1))
    pairs = left.merge(right, on=[*keys, "_again"], how="outer", suffixes=("_a", "_b"))

    def where(row: float) -> str:
        shown = rows.loc[int(row), keys].dropna()
        return ", ".join(f"{key} {value}" for key, value in shown.items())

    found = []
    for mine, other, side in (("_row_a", "_row_b", "first"), ("_row_b", "_row_a", "second")):
        lonely = pairs.loc[pairs[other].isna(), mine]
        if len(lonely):
            example = where(lonely.min())
            found.append(f"{name}: {len(lonely)} rows only in the {side}, e.g. {example}")
    both = pairs.dropna().astype("int64").sort_values("_row_a")
    for column in rows.columns.difference(keys, sort=False):
        values = codes[column].to_numpy()
        unequal = values[both["_row_a"]] != values[both["_row_b"]]
        if unequal.any():
            row_a, row_b = both[["_row_a", "_row_b"]].to_numpy()[unequal.argmax()]
            shown = f"{rows.loc[row_a, column]} and {rows.loc[row_b, column]}"
            found.append(
                f"{name}.{column}: {unequal.sum()} rows differ, e.g. {where(row_a)}: {shown}"
            )
    return found


def _exact(column: pd.Series) -> np.ndarray:
    """Values that are equal only for equal bits; missing is equal to missing."""
    if column.dtype.kind == "f":
        values = column.to_numpy(dtype=np.float64)
        return np.where(np.isnan(values), np.float64("nan"), values).view(np.int64)
    return column.astype(object).map(_plain).to_numpy(dtype=object)


def _plain(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return str([int(item) for item in value])
    return "missing" if pd.isna(value) else str(value)
