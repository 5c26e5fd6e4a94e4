r"""The summary as a LaTeX table, to be included in a paper.

It needs the package `booktabs` and nothing else. Methods are rows, partitions are columns, data
sets are spanned above them; the ceiling stands below a rule. In each column the best method is in
bold and the second best underlined, the ceiling aside; a dagger marks a difference from the
reference that is significant after Holm's correction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fedsim.results.analysis.named_runs import method_order
from fedsim.results.report.terminal import percent

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["escape", "latex_table"]

Rows = dict[tuple[str, str, str], dict[str, Any]]
"""(data set, partition, method) -> row of the summary."""

_LEVEL = 0.05  # of significance
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def escape(text: str) -> str:
    r"""Text as LaTeX shows it: special characters escaped, white space as single spaces.

    >>> escape("cache_text (lr=0.1) & 50 %")
    'cache\\_text (lr=0.1) \\& 50 \\%'
    """
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def latex_table(summary: pd.DataFrame, name: str) -> str:
    """The accuracies of a summary as a `table` with caption and label.

    Args:
        summary: What `fedsim.results.analysis.summary.summarise` returned.
        name: Of the study; it makes the label `tab:<name>`.
    """
    cells = list(dict.fromkeys(zip(summary["dataset"], summary["partition"], strict=True)))
    rows: Rows = {
        (row["dataset"], row["partition"], row["method"]): row for row in summary.to_dict("records")
    }
    methods = sorted(set(summary["method"]), key=method_order)
    ceilings = [method for method in methods if method in summary.attrs["ceilings"]]
    rivals = [method for method in methods if method not in ceilings]
    ranked = {cell: _best_two(rows, cell, rivals) for cell in cells}

    def line(method: str) -> str:
        shown = [[] if method in ceilings else ranked[cell] for cell in cells]
        pairs = zip(cells, shown, strict=True)
        numbers = [_number(rows.get((*cell, method)), best) for cell, best in pairs]
        return _row([escape(method), *numbers])

    body = [line(method) for method in rivals]
    if ceilings:
        body += [r"\midrule", *map(line, ceilings)]
    unfinished = len(summary.attrs["unfinished"])
    lines = [
        f"% {len(cells)} partitions, {len(methods)} methods; needs \\usepackage{{booktabs}}",
        *([f"% {unfinished} runs are not finished and not counted"] if unfinished else []),
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{_caption(summary)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}}}",
        rf"\begin{{tabular}}{{l{'c' * len(cells)}}}",
        r"\toprule",
        *_header(cells),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _best_two(rows: Rows, cell: tuple[str, str], rivals: Iterable[str]) -> list[float]:
    """The two highest means of a column; equal ones share their place."""
    means = [rows[(*cell, m)]["accuracy_mean"] for m in rivals if (*cell, m) in rows]
    return sorted({mean for mean in means if mean == mean}, reverse=True)[:2]


def _number(row: dict[str, Any] | None, ranked: list[float]) -> str:
    """One accuracy: mean, half the interval where there is one, and its marks."""
    if row is None or row["accuracy_mean"] != row["accuracy_mean"]:
        return "--"
    text = percent(row["accuracy_mean"])
    for mean, mark in zip(ranked, (r"\textbf", r"\underline"), strict=False):
        if row["accuracy_mean"] == mean:
            text = f"{mark}{{{text}}}"
    if row["accuracy_high"] == row["accuracy_high"]:
        half = percent(row["accuracy_high"] - row["accuracy_mean"])
        text += rf" {{\scriptsize $\pm$ {half}}}"
    return text + (r"$^\dagger$" if row["p_holm"] < _LEVEL else "")


def _header(cells: list[tuple[str, str]]) -> list[str]:
    """Data sets above their partitions; one line where one of the two is the same everywhere."""
    datasets = list(dict.fromkeys(dataset for dataset, _ in cells))
    partitions = {partition for _, partition in cells}
    if len(datasets) == 1:
        return [_row(["", *(escape(partition) for _, partition in cells)])]
    if len(partitions) == 1:
        return [_row(["", *(escape(dataset) for dataset, _ in cells)])]
    spans, rules, first = [], [], 2
    for dataset in datasets:
        width = sum(dataset == other for other, _ in cells)
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(dataset)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_row(["", *spans]), " ".join(rules), _row(["", *(escape(p) for _, p in cells)])]


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _caption(summary: pd.DataFrame) -> str:
    attrs = summary.attrs
    datasets, partitions = set(summary["dataset"]), set(summary["partition"])
    where = f" on {escape(next(iter(datasets)))}" if len(datasets) == 1 else ""
    if len(datasets) > 1 and len(partitions) == 1:
        where = f", partition {escape(next(iter(partitions)))}"
    counts = summary.loc[summary["num_seeds"] > 0, "num_seeds"]
    text = "Test accuracy in percent after the last round"
    text += f"{where}, mean over {_seeds(attrs['seeds'])}"
    if len(counts) and counts.min() < len(attrs["seeds"]):
        text += f" ({counts.min()} to {counts.max()} of them each)"
    if summary["accuracy_high"].notna().any():
        text += rf" $\pm$ half the {100 * attrs['confidence']:g}\,\% t interval"
    text += ". Best in bold, second best underlined."
    if (summary["p_holm"] < _LEVEL).any():
        tests = set(summary.loc[summary["p_holm"] < _LEVEL, "test"])
        names = {
            "paired": "paired t test",
            "unpaired": "Welch's t test where seeds or splits differ",
        }
        used = ", ".join(names[test] for test in names if test in tests)
        text += (
            rf" $^\dagger$: differs from {escape(str(attrs['reference']))} "
            rf"($p < {_LEVEL:g}$, {used}, Holm-corrected)."
        )
    return text


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
