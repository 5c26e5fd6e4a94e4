"""The texts and grids of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from fedsim.results.analysis.named_runs import CELL, final_runs, setting_paths, setting_text
from fedsim.results.analysis.summary import rank_methods
from fedsim.results.analysis.targets import target_name
from fedsim.results.report.grid import Grid, grid_of
from fedsim.results.report.numbers import (
    NONE,
    cost_text,
    human_bytes,
    interval_text,
    p_text,
    percent,
    seconds_text,
)
from fedsim.results.study import Study

# Settings that say which cell a run is in.
_CELL_SECTIONS = {"study", "output", "phase", "method", "seed", "partition"}
_PHASES = {"train_s": "client training", "aggregate_s": "aggregation", "distill_s": "distillation",
           "eval_s": "evaluation"}  # fmt: skip


def facts(study: Study) -> list[tuple[str, str]]:
    """Methods, data, machine and time of the runs: labels and texts."""
    runs = final_runs(study)
    tuned = int((study.runs["phase"] == "tune").sum())
    status = study.runs["status"].fillna("unknown").value_counts()
    found = [
        ("Methods", _list(runs["method"])),
        ("Data sets", _list(runs["dataset"])),
        ("Partitions", _list(runs["partition"])),
        ("Seeds", _list(str(seed) for seed in sorted(runs["seed"].dropna().unique()))),
        ("Clients", _list(sorted(runs["num_clients"].dropna().astype(int).unique()))),
        ("Rounds", _list(sorted(runs["num_rounds"].dropna().astype(int).unique()))),
        ("Runs", ", ".join(f"{count} {name}" for name, count in status.items())
         + (f"; {tuned} of them for tuning" if tuned else "")),
        ("Started", _span(study.runs["started_at"])),
        ("Ended", _span(study.runs["finished_at"])),
        ("Processor", _list(study.runs["cpu_name"])),
        ("GPU", _list(study.runs["gpu_name"])),
        ("System", _list(study.runs["platform"])),
        ("Versions", _list(f"{name} {version}" for name in ("fedsim", "python", "torch", "ray")
                           for version in study.runs[f"{name}_version"].dropna())),
    ]  # fmt: skip
    return [(label, text) for label, text in found if text]


def headline(summary: pd.DataFrame) -> str:
    """The outcome in a sentence; empty while nothing is finished."""
    if summary.empty or not summary["best"].any():
        return ""
    reference = summary.attrs["reference"]
    cells = summary.groupby(CELL, sort=False).ngroups
    best = summary[summary["best"]]
    winner = best["method"].value_counts().index[0]
    mine = best[best["method"] == winner]
    where = "the one partition" if cells == 1 else f"{len(mine)} of {cells} partitions"
    text = f"{winner} has the highest accuracy in {where}"
    gains = mine["difference"].dropna()
    if winner == reference or gains.empty:
        return text + "."
    low, high = percent(gains.min(), True), percent(gains.max(), True)
    text += f", {low if low == high else f'{low} to {high}'} points against {reference}"
    clear = int((mine["p_holm"] < 0.05).sum())
    return text + f"; significant after Holm's correction in {clear} of {len(mine)}."


def summary_grids(summary: pd.DataFrame) -> list[Grid]:
    """One grid per data set and partition."""
    if summary.empty:
        return []
    attrs = summary.attrs
    ends = [target_name(share) for share in attrs["shares"]]
    goals = {(goal["dataset"], goal["partition"]): goal for goal in attrs["targets"]}
    header = ["method", "seeds", "accuracy, %", f"against {attrs['reference'] or 'reference'}"]
    header += ["p (Holm)", "sent and received"]
    for end in ends:
        header += [f"rounds to {end}\u00a0%", f"bytes to {end}\u00a0%"]
    grids = []
    for (dataset, partition), group in summary.groupby(CELL, sort=False):
        rows = [_summary_row(row, ends, attrs["levels"]) for row in group.to_dict("records")]
        best = tuple(place for place, is_best in enumerate(group["best"]) if is_best)
        goal = goals.get((dataset, partition))
        levels = ""
        if goal is not None and not math.isnan(goal["ceiling"]):
            targets = ", ".join(
                f"{target_name(share)} %: {percent(level)}"
                for share, level in goal["targets"].items()
            )
            levels = (
                f" (zero-shot {percent(goal['zero_shot'])}, ceiling {percent(goal['ceiling'])}"
                f" from {goal['ceiling_from']}; targets {targets})"
            )
        grids.append(Grid(f"{dataset}, {partition}{levels}", header, rows, best=best))
    return grids


def ranks(summary: pd.DataFrame) -> Grid | None:
    """Average ranks over data sets and Wilcoxon's test; None for fewer than two data sets."""
    if summary.empty or summary["dataset"].nunique() < 2:
        return None
    table = rank_methods(summary)
    header = ["method", "average rank", "data sets", "wins", "losses", "median difference",
              "p (Wilcoxon, Holm)"]  # fmt: skip
    rows = []
    for row in table.to_dict("records"):
        cells = [row["method"], f"{row['average_rank']:.2f}", str(row["num_datasets"])]
        if "wins" in row:
            cells += [str(row["wins"]), str(row["losses"]), percent(row["difference"], True)]
            cells += [p_text(row["p_holm"])]
        rows.append(cells + ["-"] * (len(header) - len(cells)))
    left_out = ", ".join(table.attrs["left_out"])
    title = f"Left out because they miss a data set: {left_out}" if left_out else ""
    return Grid(title, header, rows)


def split_statistics(study: Study) -> Grid:
    """How uneven each partition is, means over seeds."""
    columns = {
        "partition_total_variation": "total variation",
        "partition_effective_classes": "effective classes",
        "partition_size_gini": "Gini of sizes",
    }
    cells = final_runs(study).groupby(CELL, sort=False)
    means = cells[list(columns)].mean().dropna(how="all").rename(columns=columns)
    texts = means.map(lambda mean: NONE if math.isnan(mean) else f"{mean:.2f}")
    clients = cells["num_clients"].agg(lambda numbers: _list(numbers.dropna()))
    texts.insert(0, "clients", clients.reindex(texts.index))
    texts.insert(0, "partition", [", ".join(cell) for cell in texts.index])
    return grid_of(texts)


def times(study: Study) -> Grid:
    """Seconds per round by method and phase, as measured on a machine that may have been busy."""
    runs = final_runs(study)[["run_id", "method"]]
    rounds = runs.merge(study.rounds[study.rounds["round"] > 0], on="run_id")
    means = rounds.groupby("method", sort=False)[list(_PHASES)].mean().dropna(how="all")
    texts = means.map(seconds_text).rename(columns=_PHASES).add_suffix(", s")
    return grid_of(texts.reset_index())


def settings(study: Study) -> tuple[Grid, Grid]:
    """Settings in which methods differ, a column per method; and settings that all methods share.

    Settings that just say which cell a run is in are left out.
    """
    runs = final_runs(study)
    methods = dict(tuple(runs.groupby("method", sort=False)))
    texts = {
        ".".join(path): [_values(own[column]) for own in methods.values()]
        for column, path in setting_paths(runs).items()
        if path[0] not in _CELL_SECTIONS and path[-1] != "seed"
    }
    differing = [[path, *row] for path, row in texts.items() if len(set(row)) > 1]
    shared = [[path, row[0]] for path, row in texts.items() if len(set(row)) == 1]
    return (
        Grid("", ["setting", *methods], differing, names=1 + len(methods)),
        Grid("", ["setting", "value"], shared, names=2),
    )


def _summary_row(row: dict[str, Any], ends: list[str], levels: Sequence[str]) -> list[str]:
    seeds = str(row["num_seeds"])
    if row["num_unfinished"]:
        seeds += f" (+{row['num_unfinished']} unfinished)"
    difference = interval_text(
        row["difference"], row["difference_low"], row["difference_high"], sign=True
    )
    if row["test"] == "unpaired":
        difference += " (unpaired)"
    elif row["num_missing_pairs"] and row["num_pairs"]:
        difference += f" ({row['num_pairs']} pairs)"
    cells = [
        row["method"],
        seeds,
        interval_text(row["accuracy_mean"], row["accuracy_low"], row["accuracy_high"]),
        difference,
        p_text(row["p_holm"]),
        human_bytes(row["bytes_total"]),
    ]
    is_level = row["method"] in levels or not row["rounds"] > 0
    for end in ends:
        rounds = cost_text(row[f"rounds_to_{end}"], row["rounds"])
        size = cost_text(row[f"bytes_to_{end}"], row["bytes_total"], is_bytes=True)
        cells += ["-", "-"] if is_level else [rounds, size]
    return cells


def _values(column: pd.Series) -> str:
    return ", ".join(sorted(set(column.map(setting_text))))


def _list(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values) if value == value and value)


def _span(moments: pd.Series) -> str:
    ends = moments.agg(["min", "max"]).dropna()
    return " to ".join(dict.fromkeys(f"{moment:%Y-%m-%d %H:%M} UTC" for moment in ends))
