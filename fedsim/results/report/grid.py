"""A table to read, as plain data.

`fedsim.results.report.terminal.layout` draws it for a terminal, a macro of `page.html.j2` for the
page, and `docs/fill_tables.py` for Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from fedsim.results.analysis.named_runs import CELL
from fedsim.results.analysis.significance import mean_interval
from fedsim.results.report.numbers import NONE, half_text


class Grid(NamedTuple):
    """A table of texts.

    Attributes:
        title: Above it; may be empty.
        header: One text per column.
        rows: As many texts each.
        names: How many columns at the left hold words; the others hold numbers, set right.
        best: Places of the rows to stress.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    names: int = 1
    best: tuple[int, ...] = ()


def grid_of(frame: pd.DataFrame, names: int = 1) -> Grid:
    """A frame of texts as a grid, without its index."""
    return Grid("", list(frame), frame.to_numpy(dtype=object).tolist(), names)


def grids_by_cell(
    table: pd.DataFrame, header: list[str], cells: Callable[[pd.DataFrame], list[str]]
) -> list[Grid]:
    """A grid per data set and partition of a table, with a row per method.

    `cells` makes the texts of a row, one per column of `header`, from the rows of its method.
    """
    return [
        Grid(
            ", ".join(cell),
            ["method", *header],
            [[str(m), *cells(mine)] for m, mine in here.groupby("method", sort=False)],
        )
        for cell, here in table.groupby(CELL, sort=False)
    ]


def over_seeds(scores: pd.DataFrame, sign: bool = False, form: str = "") -> str:
    """Mean over seeds of the column `value` and half its t interval, in percent or as in `form`.

    Runs of one seed count as their mean. Without a score it is `-`.
    """
    mean, _, high = mean_interval(scores.groupby("seed")["value"].mean().to_numpy())
    if not form:
        return half_text(mean, high, sign)
    if math.isnan(high):
        return NONE if math.isnan(mean) else f"{mean:{form}}"
    return f"{mean:{form}} ± {high - mean:{form}}"
