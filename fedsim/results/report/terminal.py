"""Numbers as words, and the summary as a table for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.results.analysis.targets import target_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "cost_text",
    "format_summary",
    "half_text",
    "human_bytes",
    "human_flops",
    "human_time",
    "interval_text",
    "layout",
    "p_text",
    "percent",
    "reach_text",
    "seconds_text",
    "wrapped",
]

NONE = "-"
WIDTH = 110


def human_bytes(num_bytes: float) -> str:
    """A size in binary units.

    >>> human_bytes(512), human_bytes(20_000), human_bytes(3 * 2**30)
    ('512 B', '19.5 KiB', '3.0 GiB')
    """
    if math.isnan(num_bytes):
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(num_bytes) < 1023.95 or unit == "TiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"


def human_flops(flops: float) -> str:
    """A number of floating-point operations.

    >>> human_flops(900), human_flops(41_830_400), human_flops(2.5e15)
    ('900', '41.8 M', '2.5 P')
    """
    if math.isnan(flops):
        return NONE
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if abs(flops) < 999.95 or unit == " E":
            break
        flops /= 1000
    return f"{flops:.0f}" if not unit else f"{flops:.1f}{unit}"


def human_time(seconds: float) -> str:
    """A time in a unit that suits it.

    >>> human_time(0.0123), human_time(75), human_time(600), human_time(86_400)
    ('12 ms', '75.0 s', '10.0 min', '24.0 h')
    """
    if math.isnan(seconds):
        return NONE
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds else "0 s"
    unit, size = ("s", 1) if seconds < 100 else ("min", 60) if seconds < 6000 else ("h", 3600)
    return f"{seconds / size:.1f} {unit}"


def percent(share: float, sign: bool = False) -> str:
    """A share in percent with one decimal, without the sign `%`.

    >>> percent(0.1234), percent(0.02, sign=True)
    ('12.3', '+2.0')
    """
    if math.isnan(share):
        return NONE
    return f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"


def interval_text(mean: float, low: float, high: float, sign: bool = False) -> str:
    """A mean and its interval in percent; the mean alone where there is no interval.

    >>> interval_text(0.612, 0.6, 0.624)
    '61.2 [60.0, 62.4]'
    """
    text = percent(mean, sign)
    return text if math.isnan(low) else f"{text} [{percent(low, sign)}, {percent(high, sign)}]"


def half_text(mean: float, high: float, sign: bool = False) -> str:
    """A mean and half its interval in percent; the mean alone where there is no interval.

    >>> half_text(0.612, 0.624)
    '61.2 ± 1.2'
    """
    text = percent(mean, sign)
    return text if math.isnan(high) else f"{text} ± {percent(high - mean)}"


def p_text(p: float) -> str:
    """A p value.

    >>> p_text(0.0313), p_text(0.00002)
    ('0.031', '<0.001')
    """
    if math.isnan(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def seconds_text(seconds: float) -> str:
    """A time in seconds, to the millisecond.

    >>> seconds_text(12.3456), seconds_text(0.01234), seconds_text(0.00005)
    ('12.3', '0.012', '<0.001')
    """
    if math.isnan(seconds):
        return NONE
    return "<0.001" if seconds < 0.001 else f"{seconds:.3f}" if seconds < 1 else f"{seconds:.1f}"


def cost_text(cost: float, spent: float, is_bytes: bool = False) -> str:
    """A cost to reach a target, or `>` and all that was spent without reaching it.

    >>> cost_text(3, 50), cost_text(math.inf, 50), cost_text(math.inf, 2048, is_bytes=True)
    ('3', '>50', '>2.0 KiB')
    """
    if math.isnan(cost):
        return NONE
    value = cost if math.isfinite(cost) else spent
    return (">" if math.isinf(cost) else "") + (human_bytes(value) if is_bytes else f"{value:g}")


def reach_text(row: Mapping[str, Any], ends: Sequence[str]) -> tuple[str, str]:
    """Rounds to every target, such as `2/7`, and bytes to the last one; `-` where none applies.

    Args:
        row: Of the summary, with its cost columns.
        ends: How these end, in rising order (`fedsim.results.analysis.targets.target_name`).
    """
    if not ends or not row["rounds"] > 0:  # what does not train reaches nothing
        return NONE, NONE
    rounds = "/".join(cost_text(row[f"rounds_to_{end}"], row["rounds"]) for end in ends)
    sent = cost_text(row[f"bytes_to_{ends[-1]}"], row["bytes_total"], is_bytes=True)
    return (rounds if set(rounds) - set("/-") else NONE), sent


def format_summary(summary: pd.DataFrame) -> str:
    """What `summarise` returned, as a table for a terminal of 110 columns."""
    if summary.empty:
        return "No run of this study has started."
    attrs = summary.attrs
    ends = [target_name(share) for share in attrs["shares"]]
    header = [
        "",
        "method",
        "seeds",
        "accuracy %",
        f"vs {_cut(attrs['reference'] or 'reference', 16)}",
    ]
    header += ["p (Holm)", "bytes"]
    header += [f"rounds to {'/'.join(ends)} %", f"bytes to {ends[-1]} %"] if ends else []
    goals = {(goal["dataset"], goal["partition"]): goal for goal in attrs["targets"]}
    body: list[list[str] | str] = []
    for (dataset, partition), group in summary.groupby(["dataset", "partition"], sort=False):
        body.append(_cell_line(dataset, partition, goals.get((dataset, partition))))
        body += [_row(row, ends) for row in group.to_dict("records")]
    return "\n".join([*layout(header, body, names=2), "", *map(wrapped, _notes(summary))])


def layout(header: list[str], body: Sequence[list[str] | str], names: int = 1) -> list[str]:
    """A table as lines of at most 110 columns; the last column of names is cut to fit.

    Args:
        header: The first line.
        body: Rows, and lines that stand between them as they are.
        names: The first so many columns are text, set left; the others are set right.

    >>> layout(["method", "p"], [["fedavg", "0.031"]])
    ['method      p', 'fedavg  0.031']
    """
    rows = [header, *(line for line in body if isinstance(line, list))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(header))]
    room = WIDTH - sum(widths) + widths[names - 1] - 2 * (len(widths) - 1)
    widths[names - 1] = min(widths[names - 1], max(8, room))
    return [
        line if isinstance(line, str) else _line(line, widths, names) for line in [header, *body]
    ]


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


def _cell_line(dataset: str, partition: str, goal: dict[str, Any] | None) -> str:
    if goal is None or not goal["targets"]:
        return f"\n{dataset}, {partition}"
    levels = " and ".join(percent(level) for level in goal["targets"].values())
    ends = f"zero-shot {percent(goal['zero_shot'])}, ceiling {percent(goal['ceiling'])}"
    return f"\n{dataset}, {partition}  ({ends}; targets {levels})"


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
