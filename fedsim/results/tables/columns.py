"""What a column is, and how a configuration becomes columns.

A column's kind says what may be asked of it:

- `key` says which fact the row is about (run, round, client, metric);
- `result` is what the simulation computed: equal for equal configurations, wherever it ran;
- `measured` depends on the machine and the day (seconds, memory, host names).

The `runs` table also has one column per setting, named `config.` and the setting's dotted path
(`config.train.lr`). In the files these hold JSON text (`0.05`, `"auto"`, `null`, `[1, 2]`), since
one setting may be a number in one run and a word in the next; `fedsim.load` decodes them. They are
what was asked for, so comparing two studies does not look at them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa

from fedsim.config.tree import flatten
from fedsim.errors import ResultsError, did_you_mean

__all__ = [
    "CONFIG_PREFIX",
    "Column",
    "Kind",
    "TableSchema",
    "flatten_config",
    "key",
    "measured",
    "option",
    "result",
]

Kind = Literal["key", "result", "measured"]
CONFIG_PREFIX = "config."


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Column name; it carries the unit where there is one (`_s`, `_bytes`).
        type: Arrow type as text: `int64`, `float64`, `string`, `bool`, `list<int64>`, `timestamp`.
        kind: `key`, `result` or `measured`.
        doc: One line of meaning.
        unit: Unit of the values, or an empty string.
        required: Whether a row without a value is refused.
        choices: The only values allowed, or nothing for any.
    """

    name: str
    type: str
    kind: Kind
    doc: str
    unit: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()

    @lru_cache  # noqa: B019 - columns are few and live as long as the process
    def arrow_type(self) -> pa.DataType:
        """The column's Arrow type; time stamps are in microseconds, UTC."""
        if self.type == "timestamp":
            return pa.timestamp("us", tz="UTC")
        if self.type == "list<int64>":
            return pa.list_(pa.int64())
        return getattr(pa, {"bool": "bool_"}.get(self.type, self.type))()


@dataclass(frozen=True)
class TableSchema:
    """One table: its name, meaning and columns."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    has_config: bool = False

    def column(self, name: str) -> Column:
        """The column called `name`; `config.*` names exist in `runs` only.

        Raises:
            ResultsError: The table has no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        if self.has_config and name.startswith(CONFIG_PREFIX):
            return Column(name, "string", "key", "A setting of the resolved configuration, as JSON")
        hint = did_you_mean(name, self.names())
        raise ResultsError(f"table {self.name!r} has no column {name!r}; {hint}")

    def names(self, *kinds: Kind) -> list[str]:
        """Names of the columns, of all kinds or of the kinds given."""
        return [column.name for column in self.columns if not kinds or column.kind in kinds]


def key(name: str, type: str, doc: str, unit: str = "") -> Column:
    """A column that says which fact a row is about; every row has it."""
    return Column(name, type, "key", doc, unit, required=True)


def option(name: str, type: str, doc: str, unit: str = "", choices: tuple[str, ...] = ()) -> Column:
    """A key that not every row has."""
    return Column(name, type, "key", doc, unit, choices=choices)


def result(name: str, type: str, doc: str, unit: str = "", choices: tuple[str, ...] = ()) -> Column:
    """A column that the simulation computed."""
    return Column(name, type, "result", doc, unit, choices=choices)


def measured(name: str, type: str, doc: str, unit: str = "") -> Column:
    """A column that depends on the machine and the day."""
    return Column(name, type, "measured", doc, unit)


def flatten_config(config: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a nested configuration: dotted names, values as JSON text.

    >>> flatten_config({"train": {"lr": 0.05, "steps": "auto"}, "hidden": [8, 4]})
    {'config.train.lr': '0.05', 'config.train.steps': '"auto"', 'config.hidden': '[8, 4]'}
    """
    return {name: json.dumps(value, default=str) for name, value in flatten(config, CONFIG_PREFIX)}
