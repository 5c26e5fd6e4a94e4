"""The table files of a folder as pandas data frames, also while a run writes and after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import pandas as pd
import pyarrow as pa

from fedsim.results.tables.columns import CONFIG_PREFIX
from fedsim.results.tables.many_runs import read_table
from fedsim.results.tables.older import with_new_columns
from fedsim.results.tables.schema import TABLES


def holds_tables(folder: Path) -> bool:
    """Whether a folder is that of a study."""
    return any((folder / name).is_dir() for name in TABLES)


class Selection(NamedTuple):
    """Methods and partitions to show, named as in `named_runs.final_runs`; empty for all."""

    methods: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()


def _kept(name: str) -> cached_property[pd.DataFrame]:
    """A table as an attribute: read when first asked for, then kept."""
    return cached_property(lambda tables: _to_pandas(tables._table(name)))


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of one study, each read when first asked for, then kept.

    What their rows and columns are: `fedsim.results.tables.schema`.

    Attributes:
        path: Folder of the study.
        selection: The runs to show; the tables themselves always hold all of them.
    """

    path: Path
    selection: Selection = field(default_factory=Selection)

    @property
    def name(self) -> str:
        """Name of the study: that of its folder."""
        return self.path.resolve().name

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run; `config.*` columns hold decoded values."""
        frame = _to_pandas(self._table("runs"))
        for name in frame.columns:
            if name.startswith(CONFIG_PREFIX):
                frame[name] = _decoded(frame[name])
        return with_new_columns(frame)

    rounds = _kept("rounds")
    evaluations = _kept("evaluations")
    clients = _kept("clients")
    synthetic = _kept("synthetic")
    events = _kept("events")
    predictions = _kept("predictions")

    def read(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """A few columns of a table as they are on disk now: quick, however wide the table is."""
        return _to_pandas(self._table(name, columns).select(list(columns)))

    def showing(self, selection: Selection) -> Self:
        """The same tables with another selection; what was read is not read again."""
        other = replace(self, selection=selection)
        vars(other).update({name: table for name, table in vars(self).items() if name in TABLES})
        return other

    def _table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One of the tables, as it lies on disk."""
        return read_table(self.path / name, name, columns)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """Whole numbers and truth values stay what they are, also where some are missing."""
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    plain = {pd.Int64Dtype(): "int64", pd.BooleanDtype(): "bool"}
    complete = {
        name: plain[dtype]
        for name, dtype in frame.dtypes.items()
        if dtype in plain and not frame[name].isna().any()
    }
    return frame.astype(complete)


def _decoded(column: pd.Series) -> pd.Series:
    """A `config.*` column with its JSON texts turned into values."""
    known = {text: json.loads(text) for text in column.dropna().unique()}
    values = [deepcopy(known.get(text)) for text in column]  # every row gets a list of its own
    return pd.Series(values, index=column.index, name=column.name)
