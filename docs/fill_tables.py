"""Writes a study's figures into the pages that show them.

`python docs/fill_tables.py runs/quickstart` fills every block that stands between
`<!-- quickstart-table -->` and `<!-- /quickstart-table -->` in README.md, docs/ and experiments/.
Names after `-table` keep only those methods, in that order. `<!-- quickstart-matrix -->` has a row
per method and a column per partition; `-differences` has the same of differences to the reference
method, `-reach` of the rounds and bytes to the study's targets; `-domains` and `-clients` have a
column per domain of the test split or per client, on what it held out, `-models` one per network
that the server holds; `-costs` is the cost sheet, with money where the study's folder has a
`prices.yaml`; `-sets` draws the synthetic sets of the last round, in sets.png beside the page.
Nothing in such a block is typed by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fedsim
from fedsim.results.analysis.targets import target_name
from fedsim.results.report.breakdown import breakdown_grids
from fedsim.results.report.cost_sheet import NOTE, cost_grids, cost_sheet, read_prices
from fedsim.results.report.gallery import sets_beside
from fedsim.results.report.grid import Grid
from fedsim.results.report.numbers import NONE, half_text, human_bytes, p_text, percent, reach_text
from fedsim.results.report.synthetic_sets import first_makers

ROOT = Path(__file__).parents[1]
PARTS = {
    "domains": ("domain", "on the test samples of each domain"),
    "clients": ("client", "of the model each client is served, on what it held out"),
    "models": ("model", "of every network of the server on the test split; global: the served one"),
}


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
    partitions = _partitions(summary, methods)
    lines = [
        f"| method | {' | '.join(partitions)} | bytes per run |",
        "|---" * (len(partitions) + 2) + "|",
    ]
    for method, rows, cells in _by_partition(summary, methods, _cell):
        most = human_bytes(rows["bytes_total"].max())
        lines.append(f"| {method} | {' | '.join(cells)} | {most} |")
    return lines


def differences(summary: Any, methods: list[str]) -> list[str]:
    """Paired differences to the reference as a Markdown table, a row per method."""
    partitions, reference = _partitions(summary, methods), summary.attrs["reference"]
    lines = [
        f"| against {reference} | {' | '.join(partitions)} |",
        "|---" * (len(partitions) + 1) + "|",
    ]
    for method, _, cells in _by_partition(summary, methods, _difference):
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def reach(summary: Any, methods: list[str]) -> list[str]:
    """Rounds and bytes to the targets as a Markdown table, with the accuracies they stand for."""
    goals = {
        goal["partition"]: " / ".join(map(percent, goal["targets"].values()))
        for goal in summary.attrs["targets"]
    }
    ends = [target_name(share) for share in summary.attrs["shares"]]
    partitions = _partitions(summary, methods)
    heads = [f"{name}: {goals.get(name, NONE)} %" for name in partitions]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]

    def cell(row: dict[str, Any]) -> str:
        rounds, sent = reach_text(row, ends)
        return NONE if rounds == NONE else f"rounds {rounds.replace('/', ' / ')}, {sent}"

    for method, _, cells in _by_partition(summary, methods, cell):
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


TABLES = {"table": table, "matrix": matrix, "differences": differences, "reach": reach}
KINDS = "|".join([*TABLES, *PARTS, "costs", "sets"])


def parts(study: Any, part: Any, methods: list[str]) -> list[str]:
    """Accuracy by domain or client as Markdown tables, one per partition."""
    return _markdown(breakdown_grids(study, part), methods)


def costs(study: Any, prices: Path, methods: list[str]) -> list[str]:
    """The cost sheet as Markdown tables, one per partition."""
    priced = read_prices(prices) if prices.is_file() else None
    return _markdown(cost_grids(cost_sheet(study, priced)), methods)


def sets(study: Any, methods: list[str], folder: Path) -> list[str]:
    """A picture beside the page of the sets that methods' servers end with."""
    makers = {k: v for k, v in first_makers(study).items() if not methods or k in methods}
    made = {name: study.synthetic_images(kept[-1], run) for name, (run, _, kept) in makers.items()}
    ordered = {name: made[name] for name in methods or made if name in made}
    if not ordered:
        return []
    called = " / ".join(dict.fromkeys(called for _, called, _ in makers.values()))
    sets_beside(ordered).savefig(folder / "sets.png", dpi=110)
    told = f"the first three images of each class in the last round's sets ({called})"
    return [f"![{', '.join(ordered)}: {told}](sets.png)", "", f"{told[0].upper()}{told[1:]}."]


def _markdown(grids: list[Grid], methods: list[str]) -> list[str]:
    lines: list[str] = []
    for grid in grids:
        head = grid.header if len(grids) == 1 else [grid.title, *grid.header[1:]]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        shown = [row for row in grid.rows if not methods or row[0] in methods]
        lines += [f"| {' | '.join(row)} |" for row in shown]
    return lines[1:]


def _by_partition(
    summary: Any, methods: list[str], cell: Callable[[dict[str, Any]], str]
) -> Iterator[tuple[str, Any, list[str]]]:
    """Each method, its rows, and a cell per partition, empty where it did not run."""
    shown = _shown(summary, methods)
    for method, rows in shown.groupby("method", sort=False):
        of = {row["partition"]: row for row in rows.to_dict("records")}
        names = _partitions(summary, methods)
        yield method, rows, [cell(of[name]) if name in of else "" for name in names]


def _partitions(summary: Any, methods: list[str]) -> list[str]:
    """The partitions that any of these methods ran on, in the study's order."""
    return list(dict.fromkeys(_shown(summary, methods)["partition"]))


def _shown(summary: Any, methods: list[str]) -> Any:
    """The rows of these methods in their order; none named: all of them."""
    summary = summary.assign(all_seeds=len(summary.attrs["seeds"]))
    if not methods:
        return summary
    partitions = list(dict.fromkeys(summary["partition"]))
    names = summary["method"].str.removesuffix(" (leak)")  # a mark of priors that saw the data
    found = summary[names.isin(methods)]
    place = found["partition"].map(partitions.index) * len(methods) + names[found.index].map(
        methods.index
    )
    return found.loc[place.sort_values().index]


def _accuracy(row: dict[str, Any]) -> str:
    """Bold where it is the best; of fewer runs than there should be, how many."""
    accuracy = half_text(row["accuracy_mean"], row["accuracy_high"])
    return (f"**{accuracy}**" if row["best"] else accuracy) + _missing(row)


def _missing(row: dict[str, Any]) -> str:
    seeds, unfinished = row["num_seeds"], row["num_unfinished"]
    if unfinished:
        return f" ({seeds} of {seeds + unfinished} runs)"
    return f" ({seeds})" if seeds < row["all_seeds"] else ""


def _cell(row: dict[str, Any]) -> str:
    return _accuracy(row) + ("\u2020" if row["p_holm"] < 0.05 else "")


def _difference(row: dict[str, Any]) -> str:
    text, p = half_text(row["difference"], row["difference_high"], sign=True), p_text(row["p_holm"])
    if p != NONE:
        text += f", p = {p}".replace("= <", "< ")
    return text + _missing(row)


def note(study: Any, summary: Any, kind: str = "table") -> str:
    """What the figures are, and where they come from."""
    runs = study.runs[(study.runs["phase"] == "final") & (study.runs["status"] == "finished")]
    first = runs.iloc[0]
    spent_s = runs["wall_s"].sum()
    spent = f"{spent_s / 3600:.1f} hours" if spent_s >= 3600 else f"{spent_s / 60:.1f} minutes"
    machine = f"{first.num_cpus:g} x {first.cpu_name}"
    if isinstance(first.gpu_name, str):
        machine += f", {first.num_gpus:g} x {first.gpu_name}"
    return (
        f"{_meaning(summary, kind)}. {len(runs)} runs, {spent} of run time together, on {machine}, "
        f"{first.started_at:%Y-%m-%d}, torch {first.torch_version}. Printed by `fedsim report "
        f"runs/{study.name}`."
    )


def _meaning(summary: Any, kind: str) -> str:
    seeds, reference = ", ".join(map(str, summary.attrs["seeds"])), summary.attrs["reference"]
    fewer = (summary["num_seeds"] + summary["num_unfinished"] < len(summary.attrs["seeds"])).any()
    mean = f"Mean and half the 95 % t interval over seeds {seeds}"
    if fewer:
        mean += f", or {'those' if kind in PARTS else 'the first (n)'} of them"
        mean += " that were run" if kind in PARTS else ""
    mean += "; "
    best = "bold: best mean but for ceilings"
    if kind == "differences":
        return (
            f"{mean}accuracy of the last round on the test split minus that of {reference}, paired "
            f"by seed, in points; p: paired t test, Holm-corrected over the study"
        )
    if kind == "reach":
        shares = " and ".join(f"{target_name(share)} %" for share in summary.attrs["shares"])
        ceilings = dict.fromkeys(goal["ceiling_from"] for goal in summary.attrs["targets"])
        return (
            f"Median over seeds {seeds}: rounds until the test accuracy in the header is reached, "
            f"{shares} of the way from zero-shot to the ceiling ({'; '.join(ceilings)}), and bytes "
            f"until the last of them, both ways, set-up included; >: not reached"
        )
    if kind == "matrix":
        return (
            f"{mean}accuracy of the last round on the test split; \u2020: p < 0.05 against "
            f"{reference}, paired by seed, Holm-corrected; {best}"
        )
    if kind in PARTS:
        return (
            f"{mean}accuracy of the last round in percent, {PARTS[kind][1]}"
            f"{'' if kind == 'models' else '; worst: the lowest of each run'}"
        )
    return (
        f"{mean}accuracy of the last round on the test split; differences paired by seed, in "
        f"points; {best}"
    )


def fill(text: str, study: Any, summary: Any, folder: Path = ROOT) -> str:
    """A page in a folder with its blocks of this study rewritten."""
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
        if kind == "sets":
            return "\n".join([match[1], "", *sets(study, methods, folder), "", match[4]])
        if kind in PARTS:
            lines = parts(study, PARTS[kind][0], methods)
        else:
            lines = TABLES[kind](summary, methods)
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
            after = fill(before, study, summary, page.parent)
            if after != before:
                page.write_text(after, encoding="utf-8")
                sys.stdout.write(f"{page.relative_to(ROOT)}: figures of {study.name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
