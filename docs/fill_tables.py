"""Writes a study's figures into the pages that show them.

`python docs/fill_tables.py runs/quickstart` fills every block that stands between
`<!-- quickstart-table -->` and `<!-- /quickstart-table -->` in README.md, docs/ and experiments/.
Names after `-table` keep only those methods, in that order. `<!-- quickstart-matrix -->` has a row
per method and a column per partition; `-domains` and `-clients` have a column per domain of the
test split or per client, on what it held out; `-costs` is the cost sheet, with money where the
study's folder has a `prices.yaml`. Nothing in such a block is typed by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import fedsim
from fedsim.results.breakdown import breakdown_grids
from fedsim.results.contents import Grid
from fedsim.results.cost_sheet import NOTE, cost_grids, cost_sheet, read_prices
from fedsim.results.text import half_text, human_bytes, p_text

ROOT = Path(__file__).parents[1]
PARTS = {
    "domains": ("domain", "on the test samples of each domain"),
    "clients": ("client", "of the model each client is served, on what it held out"),
}
KINDS = "|".join(["table", "matrix", "costs", *PARTS])


def pages() -> list[Path]:
    """Every page that may hold a block."""
    found = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]
    return [ROOT / "README.md", *sorted(found)]


def table(summary: Any, methods: list[str]) -> list[str]:
    """Accuracy, difference, p value and bytes as a Markdown table."""
    reference = summary.attrs["reference"]
    lines = [
        f"| partition | method | accuracy % | against {reference} | p (Holm) | bytes per run |",
        "|---|---|---|---|---|---|",
    ]
    for row in _shown(summary, methods).to_dict("records"):
        cells = [
            row["partition"],
            row["method"],
            _accuracy(row),
            half_text(row["difference"], row["difference_high"], sign=True),
            p_text(row["p_holm"]),
            human_bytes(row["bytes_total"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def matrix(summary: Any, methods: list[str]) -> list[str]:
    """Accuracy as a Markdown table, a row per method; a dagger where it differs significantly."""
    shown = _shown(summary, methods)
    partitions = list(dict.fromkeys(shown["partition"]))
    lines = [
        f"| method | {' | '.join(partitions)} | bytes per run |",
        "|---" * (len(partitions) + 2) + "|",
    ]
    for method, rows in shown.groupby("method", sort=False):
        of = {row["partition"]: row for row in rows.to_dict("records")}
        cells = [_cell(of[name]) if name in of else "" for name in partitions]
        most = human_bytes(rows["bytes_total"].max())
        lines.append(f"| {method} | {' | '.join(cells)} | {most} |")
    return lines


def parts(study: Any, part: Any, methods: list[str]) -> list[str]:
    """Accuracy by domain or client as Markdown tables, one per partition."""
    return _markdown(breakdown_grids(study, part), methods)


def costs(study: Any, prices: Path, methods: list[str]) -> list[str]:
    """The cost sheet as Markdown tables, one per partition."""
    priced = read_prices(prices) if prices.is_file() else None
    return _markdown(cost_grids(cost_sheet(study, priced)), methods)


def _markdown(grids: list[Grid], methods: list[str]) -> list[str]:
    lines: list[str] = []
    for grid in grids:
        head = grid.header if len(grids) == 1 else [grid.title, *grid.header[1:]]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        shown = [row for row in grid.rows if not methods or row[0] in methods]
        lines += [f"| {' | '.join(row)} |" for row in shown]
    return lines[1:]


def _shown(summary: Any, methods: list[str]) -> Any:
    """The rows of these methods in their order; none named: all of them."""
    if not methods:
        return summary
    partitions = list(dict.fromkeys(summary["partition"]))
    found = summary[summary["method"].isin(methods)]
    place = found["partition"].map(partitions.index) * len(methods) + found["method"].map(
        methods.index
    )
    return found.loc[place.sort_values().index]


def _accuracy(row: dict[str, Any]) -> str:
    """Bold where it is the best; of fewer runs than there should be, how many."""
    accuracy = half_text(row["accuracy_mean"], row["accuracy_high"])
    text = f"**{accuracy}**" if row["best"] else accuracy
    seeds, unfinished = row["num_seeds"], row["num_unfinished"]
    return f"{text} ({seeds} of {seeds + unfinished} runs)" if unfinished else text


def _cell(row: dict[str, Any]) -> str:
    return _accuracy(row) + ("\u2020" if row["p_holm"] < 0.05 else "")


def note(study: Any, summary: Any, kind: str = "table") -> str:
    """Where the figures come from."""
    runs = study.runs[(study.runs["phase"] == "final") & (study.runs["status"] == "finished")]
    first = runs.iloc[0]
    spent_s = runs["wall_s"].sum()
    spent = f"{spent_s / 3600:.1f} hours" if spent_s >= 3600 else f"{spent_s / 60:.1f} minutes"
    seeds = ", ".join(map(str, summary.attrs["seeds"]))
    machine = f"{first.num_cpus:g} x {first.cpu_name}"
    if isinstance(first.gpu_name, str):
        machine += f", {first.num_gpus:g} x {first.gpu_name}"
    what, best = "on the test split", "; bold: best mean but for ceilings"
    compared = "; differences paired by seed, in points"
    if kind == "matrix":
        reference = summary.attrs["reference"]
        compared = f"; \u2020: p < 0.05 against {reference}, paired by seed, Holm-corrected"
    elif kind in PARTS:
        what = "in percent, " + PARTS[kind][1]
        compared, best = "; worst: the lowest of each run", ""
    return (
        f"Mean and half the 95 % t interval over seeds {seeds}; accuracy of the last round "
        f"{what}{compared}{best}. {len(runs)} runs, {spent} of run time together, on {machine}, "
        f"{first.started_at:%Y-%m-%d}, torch {first.torch_version}. Printed by `fedsim report "
        f"runs/{study.name}`."
    )


def fill(text: str, study: Any, summary: Any) -> str:
    """A page with its blocks of this study rewritten."""
    name = re.escape(study.name)
    mark = re.compile(
        rf"(<!-- {name}-({KINDS})((?: \w+)*) -->)\n.*?(<!-- /{name}-\2 -->)", re.DOTALL
    )

    def block(match: re.Match[str]) -> str:
        kind, methods = match[2], match[3].split()
        if kind == "costs":
            prices = ROOT / "experiments" / study.name / "prices.yaml"
            lines = costs(study, prices, methods)
            command = f"fedsim costs runs/{study.name}"
            if prices.is_file():
                command += f" --prices {prices.relative_to(ROOT)}"
            told = f"{NOTE} Printed by `{command}`."
            return "\n".join([match[1], "", *lines, "", told, "", match[4]])
        if kind in PARTS:
            lines = parts(study, PARTS[kind][0], methods)
        else:
            lines = (matrix if kind == "matrix" else table)(summary, methods)
        told = note(study, summary, kind)
        return "\n".join([match[1], "", *lines, "", told, "", match[4]])

    return mark.sub(block, text)


def main(folders: list[str]) -> None:
    """Fill the blocks of the studies in `folders`."""
    for folder in folders:
        study = fedsim.load(folder)
        summary = study.summary()
        for page in pages():
            before = page.read_text(encoding="utf-8")
            after = fill(before, study, summary)
            if after != before:
                page.write_text(after, encoding="utf-8")
                sys.stdout.write(f"{page.relative_to(ROOT)}: figures of {study.name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
