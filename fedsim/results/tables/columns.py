"""What a column is, and how a configuration becomes columns.

A column's kind says what may be asked of it:

- `key` says which fact the row is about (run, round, client, metric);
- `result` is what the simulation computed: equal for equal configurations, wherever it ran;
- `measured` depends on the machine and the day (seconds, memory, host names).

The `runs` table also has one column per setting, named `config.` and the setting's dotted path
(`config.train.lr`). In the files these hold JSON text (`0.05`, `"auto"`, `null`, `[1, 2]`), since
one setting may be a number in one run and a word in the next; `fedsim.load` decodes them. They say
what was asked for, so a comparison of two studies leaves them out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import pyarrow as pa

from fedsim.config.tree import flatten
from fedsim.errors import ResultsError, did_you_mean

Kind = Literal["key", "result", "measured"]
CONFIG_PREFIX = "config."


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Column name; it carries the unit where there is one (`_s`, `_bytes`).
        type: Arrow type as text: `int64`, `float64`, `string`, `bool`, `list<int64>`, `timestamp`.
        doc: One line of meaning.
        unit: Unit of the values, or an empty string.
        choices: The only values allowed; empty for any.
        kind: `key`, `result` or `measured`.
        required: Whether a row without a value is refused.
    """

    name: str
    type: str
    doc: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    kind: Kind = "result"
    required: bool = False

    @lru_cache  # noqa: B019 - columns are few and live as long as the process
    def arrow_type(self) -> pa.DataType:
        """The column's Arrow type; time stamps are in microseconds, UTC."""
        others = {"timestamp": pa.timestamp("us", tz="UTC"), "list<int64>": pa.list_(pa.int64())}
        return others.get(self.type) or pa.type_for_alias(self.type)


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
            return option(name, "string", "A setting of the resolved configuration, as JSON")
        hint = did_you_mean(name, self.names())
        raise ResultsError(f"table {self.name!r} has no column {name!r}; {hint}")

    def names(self, *kinds: Kind) -> list[str]:
        """Names of the columns, of all kinds or of the kinds given."""
        return [column.name for column in self.columns if not kinds or column.kind in kinds]


key = partial(Column, kind="key", required=True)
"""A column that says which fact a row is about; every row has it."""
option = partial(Column, kind="key")
"""A key that not every row has."""
result = partial(Column, kind="result")
"""A column that the simulation computed."""
measured = partial(Column, kind="measured")
"""A column that depends on the machine and the day."""


def flatten_config(config: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a nested configuration: dotted names, values as JSON text.

    >>> flatten_config({"train": {"lr": 0.05, "steps": "auto"}, "hidden": [8, 4]})
    {'config.train.lr': '0.05', 'config.train.steps': '"auto"', 'config.hidden': '[8, 4]'}
    """
    return {name: json.dumps(value, default=str) for name, value in flatten(config, CONFIG_PREFIX)}
