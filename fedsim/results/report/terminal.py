"""Grids as lines of text, and the summary as a table for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from fedsim.results.analysis.named_runs import CELL
from fedsim.results.analysis.targets import target_name
from fedsim.results.report.grid import Grid
from fedsim.results.report.numbers import half_text, human_bytes, p_text, percent, reach_text

WIDTH = 110


def format_summary(summary: pd.DataFrame) -> str:
    """A summary as a table for a terminal of 110 columns."""
    if summary.empty:
        return "No run of this study has started."
    attrs = summary.attrs
    ends = [target_name(share) for share in attrs["shares"]]
    against = f"vs {_cut(attrs['reference'] or 'reference', 16)}"
    header = ["", "method", "seeds", "accuracy %", against, "p (Holm)", "bytes"]
    header += [f"rounds to {'/'.join(ends)} %", f"bytes to {ends[-1]} %"] if ends else []
    goals = {(goal["dataset"], goal["partition"]): goal for goal in attrs["targets"]}
    grids = [
        Grid(
            _title(dataset, partition, goals.get((dataset, partition))),
            header,
            [_row(row, ends) for row in group.to_dict("records")],
            names=2,
        )
        for (dataset, partition), group in summary.groupby(CELL, sort=False)
    ]
    return "\n".join([*layout(grids), "", *map(wrapped, _notes(summary))])


def layout(grids: Sequence[Grid]) -> list[str]:
    """Grids of one header, below each other, as lines of at most 110 columns.

    The last column of names is cut to fit.

    >>> layout([Grid("", ["method", "p"], [["fedavg", "0.031"]])])
    ['method      p', 'fedavg  0.031']
    """
    header, names = grids[0].header, grids[0].names
    rows = [header, *(row for grid in grids for row in grid.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = WIDTH - sum(widths) + widths[names - 1] - 2 * (len(widths) - 1)
    widths[names - 1] = min(widths[names - 1], max(8, room))
    lines = [_line(header, widths, names)]
    for grid in grids:
        lines += [f"\n{grid.title}"] if grid.title else []
        lines += [_line(row, widths, names) for row in grid.rows]
    return lines


def wrapped(text: str) -> str:
    """A note in lines of at most 110 columns."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _row(row: dict[str, Any], ends: list[str]) -> list[str]:
    cells = [
        "*" if row["best"] else "",
        row["method"],
        f"{row['num_seeds']}" + (f"+{row['num_unfinished']}?" if row["num_unfinished"] else ""),
        half_text(row["accuracy_mean"], row["accuracy_high"]),
        half_text(row["difference"], row["difference_high"], True),
        p_text(row["p_holm"]) + (" w" if row["test"] == "unpaired" else ""),
        human_bytes(row["bytes_total"]),
    ]
    if ends:
        cells += reach_text(row, ends)
    return cells


def _title(dataset: str, partition: str, goal: dict[str, Any] | None) -> str:
    if goal is None or not goal["targets"]:
        return f"{dataset}, {partition}"
    levels = " and ".join(percent(level) for level in goal["targets"].values())
    ends = f"zero-shot {percent(goal['zero_shot'])}, ceiling {percent(goal['ceiling'])}"
    return f"{dataset}, {partition}  ({ends}; targets {levels})"


def _line(cells: list[str], widths: list[int], names: int) -> str:
    pieces = []
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = _cut(cell, width)
        pieces.append(text.ljust(width) if place < names else text.rjust(width))
    return "  ".join(pieces).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _notes(summary: pd.DataFrame) -> list[str]:
    attrs = summary.attrs
    notes = [
        f"Mean and {100 * attrs['confidence']:g} % t interval over seeds; last round, test split; "
        "* best but for the ceiling.",
        f"Differences to {attrs['reference'] or 'the reference'} are paired by seed, in points; "
        "p: paired t test, Holm-corrected over all.",
    ]
    if any(" (leak)" in method for method in attrs["ceilings"]):
        notes.append("(leak): its prior was trained on this data; an upper bound, never the best.")
    bytes_text = "bytes count both ways and the set-up."
    if attrs["shares"]:
        notes.append(f"Costs are medians; > means not reached; {bytes_text}")
    else:
        notes.append(bytes_text.capitalize())
    notes += [
        f"w: without pairs, by Welch's test; {', '.join(methods)}: {reason}."
        for reason, methods in attrs["unpaired"].items()
    ]
    sources = {goal["ceiling_from"]: None for goal in attrs["targets"] if attrs["shares"]}
    notes += [f"Ceiling: {source}." for source in sources if source.startswith("the best")]
    missing = summary[
        (summary["num_missing_pairs"] > 0)
        & (summary["method"] != attrs["reference"])
        & (summary["test"] != "unpaired")
    ]
    if attrs["reference"] and len(missing):
        count = int(missing["num_missing_pairs"].sum())
        notes.append(
            f"{count} runs have no partner in the reference and are not in the differences."
        )
    if attrs["unfinished"]:
        count = len(attrs["unfinished"])
        notes.append(
            f"{count} runs are not finished and not counted (seeds: finished+unfinished?)."
        )
    return notes
