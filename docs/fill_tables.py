"""Writes a study's figures into the pages that show them.

`python docs/fill_tables.py runs/quickstart` fills every block that stands between
`<!-- quickstart-table -->` and `<!-- /quickstart-table -->` in README.md, docs/ and experiments/.
Names after `-table` keep only those methods. `<!-- quickstart-matrix -->` has a row per method and
a column per partition. Nothing in such a block is typed by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import fedsim
from fedsim.results.text import half_text, human_bytes, p_text

ROOT = Path(__file__).parents[1]


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
    shown = summary[summary["method"].isin(methods)] if methods else summary
    for row in shown.to_dict("records"):
        accuracy = half_text(row["accuracy_mean"], row["accuracy_high"])
        cells = [
            row["partition"],
            row["method"],
            f"**{accuracy}**" if row["best"] else accuracy,
            half_text(row["difference"], row["difference_high"], sign=True),
            p_text(row["p_holm"]),
            human_bytes(row["bytes_total"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def matrix(summary: Any, methods: list[str]) -> list[str]:
    """Accuracy as a Markdown table, a row per method; a dagger where it differs significantly."""
    shown = summary[summary["method"].isin(methods)] if methods else summary
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


def _cell(row: dict[str, Any]) -> str:
    accuracy = half_text(row["accuracy_mean"], row["accuracy_high"])
    mark = "\u2020" if row["p_holm"] < 0.05 else ""
    return (f"**{accuracy}**" if row["best"] else accuracy) + mark


def note(study: Any, summary: Any, marked: bool = False) -> str:
    """Where the figures come from."""
    runs = study.runs[(study.runs["phase"] == "final") & (study.runs["status"] == "finished")]
    first = runs.iloc[0]
    spent_s = runs["wall_s"].sum()
    spent = f"{spent_s / 3600:.1f} hours" if spent_s >= 3600 else f"{spent_s / 60:.1f} minutes"
    seeds = ", ".join(map(str, summary.attrs["seeds"]))
    machine = f"{first.num_cpus:g} x {first.cpu_name}"
    if isinstance(first.gpu_name, str):
        machine += f", {first.num_gpus:g} x {first.gpu_name}"
    compared = "differences paired by seed, in points"
    if marked:
        reference = summary.attrs["reference"]
        compared = f"\u2020: p < 0.05 against {reference}, paired by seed, Holm-corrected"
    return (
        f"Mean and half the 95 % t interval over seeds {seeds}; accuracy of the last round on the "
        f"test split; {compared}; bold: best mean but for ceilings. {len(runs)} runs, "
        f"{spent} of run time together, on {machine}, {first.started_at:%Y-%m-%d}, "
        f"torch {first.torch_version}. Printed by `fedsim report runs/{study.name}`."
    )


def fill(text: str, study: Any, summary: Any) -> str:
    """A page with its blocks of this study rewritten."""
    name = re.escape(study.name)
    mark = re.compile(
        rf"(<!-- {name}-(table|matrix)((?: \w+)*) -->)\n.*?(<!-- /{name}-\2 -->)", re.DOTALL
    )

    def block(match: re.Match[str]) -> str:
        make = matrix if match[2] == "matrix" else table
        lines = make(summary, match[3].split())
        told = note(study, summary, marked=match[2] == "matrix")
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
