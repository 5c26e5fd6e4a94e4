"""Studies side by side: what `fedsim compare` prints and writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedsim.errors import ConfigError, ResultsError
from fedsim.results.analysis.named_runs import CELL, final_runs, select
from fedsim.results.analysis.summary import non_inferiority, reference_of, summarise
from fedsim.results.report.facts import ranks
from fedsim.results.report.grid import Grid, grids_by_cell
from fedsim.results.report.numbers import p_text, percent
from fedsim.results.report.terminal import format_summary, layout, wrapped
from fedsim.results.several import Studies, load_several


@dataclass(frozen=True)
class Comparison:
    """Several studies compared.

    Attributes:
        name: The names of all of them.
        summary: As `fedsim.results.analysis.summary.summarise` returns it, without targets; with
            the columns of `non_inferiority` where a margin was given.
        warnings: One line each, to be read first.
        text: The tables for a terminal.
    """

    name: str
    summary: pd.DataFrame
    warnings: list[str]
    text: str


def compare(
    paths: Sequence[Path | str],
    reference_method: str | None = None,
    margin: float | None = None,
    methods: Sequence[str] = (),
    partitions: Sequence[str] = (),
) -> Comparison:
    """Compare the methods of several studies.

    Args:
        paths: Their folders; one is enough.
        reference_method: What the others are compared with; by default that of the first study.
        margin: In 0..1: also test which methods are no more than that below the best other one.
        methods: Compare only these, named as in the table, with the reference. p values are
            corrected over these comparisons, so choose before looking.
        partitions: Only these, named as in the table.

    Raises:
        ResultsError: A folder holds no study or is given twice, a method or partition is unknown,
            the reference was not run in the partitions, or the margin is no share.
    """
    studies = load_several(paths)
    reference_method = reference_of(studies, reference_method)
    if methods and reference_method is not None:
        methods = [*methods, reference_method]
    studies = select(studies, methods, partitions)
    if partitions and reference_method not in {None, *final_runs(studies)["method"]}:
        raise ResultsError(
            f"{reference_method}, which the others are compared with, was not run in "
            f"{', '.join(partitions)}; choose another: --reference METHOD"
        )
    summary = summarise(studies, reference_method, targets=())
    parts = [format_summary(summary)]
    if margin is not None:
        tested = non_inferiority(studies, margin)
        parts.append(_margin_text(tested, margin))
        attrs = summary.attrs
        summary = summary.merge(tested, on=[*CELL, "method"], how="left")
        summary.attrs = attrs
    grid = ranks(summary)
    if grid is not None:
        note = (
            "Average ranks over data sets (1 is best), each data set once; Wilcoxon's signed-rank"
        )
        parts.append("\n".join([*layout([grid._replace(title="")]), "", wrapped(f"{note} test.")]))
        if grid.title:
            parts[-1] += f"\n{wrapped(grid.title)}."
    return Comparison(studies.name, summary, _warnings(studies, summary), "\n\n".join(parts))


def margin_of(points: str | None) -> float | None:
    """The margin that a user gave in points of accuracy, as a share.

    >>> margin_of("0.3"), margin_of(None)
    (0.003, None)

    Raises:
        ConfigError: It is no number from 0 to below 100.
    """
    if points is None:
        return None
    try:
        margin = float(points) / 100
    except ValueError:
        margin = math.nan
    if not 0 <= margin < 1:
        raise ConfigError(f"--margin is {points!r}: give points of accuracy, such as 0.3")
    return margin


def _margin_text(tested: pd.DataFrame, margin: float) -> str:
    """The table of the one-sided tests."""
    header = ["against", "difference", "lower bound", "p (Holm)"]

    def cells(mine: pd.DataFrame) -> list[str]:
        row = mine.iloc[0]
        numbers = [percent(row[name], True) for name in ("margin_difference", "margin_low")]
        p = p_text(row["margin_p_holm"]) + (" w" if row["margin_test"] == "unpaired" else "")
        return [row["rival"], *numbers, p]

    grids = grids_by_cell(tested, header, cells) or [Grid("", ["method", *header], [])]
    points = f"{100 * margin:g}"
    note = (
        f"Is a method no more than {points} points below the best other one (the ceiling aside)? "
        f"One-sided t test of a difference of -{points} or less; a lower bound above -{points} "
        "(95 %, one-sided) and a small p say yes. p is Holm-corrected over this table; w: unpaired."
    )
    return "\n".join([*layout([grid._replace(names=2) for grid in grids]), "", wrapped(note)])


def _warnings(studies: Studies, summary: pd.DataFrame) -> list[str]:
    """Unfinished runs by study, and comparisons that are impossible."""
    runs = final_runs(studies)
    total = Counter(runs["study"])
    unfinished = Counter(run["study"] for run in summary.attrs["unfinished"])
    found = []
    for name in studies.members:
        if not total[name]:
            left = name in set(studies.runs.loc[studies.runs["phase"] != "tune", "study"])
            found.append(f"none of {name}'s runs is asked for" if left
                         else f"{name} has no run yet, tuning aside")  # fmt: skip
        elif unfinished[name]:
            found.append(f"{unfinished[name]} of {total[name]} runs of {name} are not finished: "
                         "they are not counted")  # fmt: skip
    reference = summary.attrs["reference"]
    cells = summary.groupby(CELL)["method"].agg(set)
    missing = sum(reference not in methods for methods in cells)
    if reference is not None and missing:
        found.append(f"{reference}, which the others are compared with, is missing in {missing} "
                     f"of {len(cells)} partitions; choose another: --reference METHOD")  # fmt: skip
    homes = runs.groupby(CELL)["study"].nunique()
    if len(total) > 1 and homes.max() < 2:
        found.append("these studies have no data set and partition in common")
    return found
