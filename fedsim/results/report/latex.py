r"""The summary as a LaTeX table, to be included in a paper.

It needs the package `booktabs` and nothing else. Methods are rows, partitions are columns, data
sets are spanned above them; the ceiling stands below a rule. In each column the best method is in
bold and the second best underlined, the ceiling aside; a dagger marks a difference from the
reference that is significant after Holm's correction.
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from fedsim.results.analysis.named_runs import CELL, method_order
from fedsim.results.report.numbers import percent

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
    """The accuracies of a summary as a `table` with caption; the study's name makes its label."""
    cells = list(dict.fromkeys(zip(summary["dataset"], summary["partition"], strict=True)))
    bounds = summary.attrs["ceilings"]
    top = set(bounds) & set(summary.attrs["levels"])
    methods = sorted(set(summary["method"]), key=lambda m: (m in bounds, m in top, method_order(m)))
    rivals = [method for method in methods if method not in bounds]
    means = summary["accuracy_mean"].where(summary["method"].isin(rivals))
    places = means.groupby([summary[name] for name in CELL]).rank("dense", ascending=False)
    rows = summary.assign(place=places).to_dict("records")
    texts = summary.assign(text=list(map(_number, rows))).pivot_table(
        index="method", columns=CELL, values="text", aggfunc="first"
    )
    names = [escape(method) for method in methods]
    if rivals and bounds:
        names[len(rivals)] = "\\midrule\n" + names[len(rivals)]  # it stands before the row
    table = texts.reindex(index=methods, columns=cells).fillna("--").set_axis(names)
    table.columns = _header(cells)
    text: str = table.style.to_latex(
        column_format="l" + "c" * len(cells),
        caption=_caption(summary),
        label=f"tab:{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}",
        position="t",
        position_float="centering",
        multicol_align="c",
        hrules=True,
    )
    lines = [f"% {len(cells)} partitions, {len(methods)} methods; needs \\usepackage{{booktabs}}"]
    if unfinished := len(summary.attrs["unfinished"]):
        lines.append(f"% {unfinished} runs are not finished and not counted")
    return "\n".join([*lines, text])


def _number(row: dict[str, Any]) -> str:
    """One accuracy: mean, half the interval where there is one, and its marks."""
    if row["accuracy_mean"] != row["accuracy_mean"]:
        return "--"
    text = percent(row["accuracy_mean"])
    if row["place"] <= 2:  # equal means share a place
        mark = r"\textbf" if row["place"] == 1 else r"\underline"
        text = f"{mark}{{{text}}}"
    if row["accuracy_high"] == row["accuracy_high"]:
        half = percent(row["accuracy_high"] - row["accuracy_mean"])
        text += rf" {{\scriptsize $\pm$ {half}}}"
    return text + (r"$^\dagger$" if row["p_holm"] < _LEVEL else "")


def _header(cells: list[tuple[str, str]]) -> pd.Index:
    """Data sets above their partitions; one line where one of the two is the same everywhere."""
    datasets, partitions = ([escape(name) for name in names] for names in zip(*cells, strict=True))
    if len(set(datasets)) == 1:
        return pd.Index(partitions)
    if len(set(partitions)) == 1:
        return pd.Index(datasets)
    first, rules = 2, []
    for dataset in dict.fromkeys(datasets):
        last = first + datasets.count(dataset) - 1
        rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
        first = last + 1
    # The name of the lower line is written at its start: right below the spans.
    return pd.MultiIndex.from_arrays([datasets, partitions], names=["", " ".join(rules) + "\n"])


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
