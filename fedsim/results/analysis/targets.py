"""The cost of reaching a target: rounds, bytes and FLOPs to an accuracy that all methods share.

The target of a data set and partition lies a share of the way (50 %, 90 %) from zero-shot accuracy
to a ceiling. Zero-shot is the method that saw no sample (`runs.zero_shot`), in this partition or in
another of the data set, since it does not depend on the split; without it, the lowest accuracy
before training. The ceiling is the better of the methods on pooled data (`runs.pooled`); without
one, the best mean of the partition. Bytes count everything sent and received since the start,
downloads of the set-up included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
import pandas as pd

from fedsim.results.analysis.named_runs import CELL


class Goal(TypedDict):
    """Zero-shot and ceiling of one data set and partition, where both come from, and the targets.

    `targets` maps shares to accuracies, NaN where the ceiling is not above zero-shot.
    """

    dataset: str
    partition: str
    zero_shot: float
    zero_shot_from: str
    ceiling: float
    ceiling_from: str
    targets: dict[float, float]


def target_name(share: float) -> str:
    """How a target's columns end: `50` for 0.5."""
    return f"{100 * share:g}"


def targets_of(
    curves: pd.DataFrame, finished: pd.DataFrame, shares: Sequence[float]
) -> dict[tuple[str, str], Goal]:
    """The targets of every data set and partition at these shares of the way to the ceiling.

    `finished` holds the last rounds of finished runs, `curves` all rounds of all runs.
    """
    goals: dict[tuple[str, str], Goal] = {}
    for (dataset, partition), group in curves.groupby(CELL, sort=False):
        done = finished[finished["dataset"] == dataset]
        here = done[done["partition"] == partition]
        zero_shot, zero_from = _mean_of(here, done, "zero_shot")
        if math.isnan(zero_shot):
            start = group[group["round"] == 0].groupby("method")["accuracy"].mean()
            zero_shot, zero_from = float(start.min()), "the lowest accuracy before training"
        ceiling, ceiling_from = _mean_of(here, done, "pooled")
        if math.isnan(ceiling):
            best = here.groupby("method")["accuracy"].mean()
            ceiling = float(best.max())
            if not math.isnan(ceiling):
                reason = "because the study has no centralised run"
                ceiling_from = f"the best method here, {best.idxmax()}, {reason}"
        way = ceiling - zero_shot
        levels = {s: zero_shot + s * way if way > 0 else math.nan for s in shares}
        goals[dataset, partition] = Goal(
            dataset=dataset, partition=partition, zero_shot=zero_shot, zero_shot_from=zero_from,
            ceiling=ceiling, ceiling_from=ceiling_from, targets=levels,
        )  # fmt: skip
    return goals


def cost_to_reach(run: pd.DataFrame, target: float) -> tuple[float, float, float]:
    """Round, cumulative bytes and FLOPs at which the curve of one run first reached an accuracy.

    Three infinities if it never did; three NaN if there is no target.
    """
    if math.isnan(target):
        return math.nan, math.nan, math.nan
    there = run[run["accuracy"] >= target]
    if there.empty:
        return math.inf, math.inf, math.inf
    first = there.iloc[0]
    return float(first["round"]), float(first["bytes"]), float(first["flops"])


def costs_to_targets(
    curves: pd.DataFrame, goals: dict[tuple[str, str], Goal], shares: Sequence[float]
) -> dict[str, float]:
    """The cost columns of one row of the summary, from the curves of its finished runs: medians."""
    row: dict[str, float] = {}
    runs = [run for _, run in curves.groupby("run_id", sort=False)]
    for share in shares:
        end = target_name(share)
        columns = [f"rounds_to_{end}", f"bytes_to_{end}", f"flops_to_{end}"]
        row |= {f"target_{end}": math.nan, f"reached_{end}": 0} | dict.fromkeys(columns, math.nan)
        if not runs:
            continue
        target = goals[curves["dataset"].iloc[0], curves["partition"].iloc[0]]["targets"][share]
        row[f"target_{end}"] = target
        costs = np.sort([cost_to_reach(run, target) for run in runs], axis=0)
        row[f"reached_{end}"] = int(np.isfinite(costs[:, 0]).sum())
        middle = (costs[(len(runs) - 1) // 2] + costs[len(runs) // 2]) / 2
        row |= dict(zip(columns, map(float, middle), strict=True))
    return row


def _mean_of(
    here: pd.DataFrame, dataset: pd.DataFrame, fact: Literal["zero_shot", "pooled"]
) -> tuple[float, str]:
    """Best mean final accuracy of such methods in the partition, or else in the data set."""
    for runs, where in ((here, ""), (dataset, ", other partitions")):
        mine = runs[runs[fact]]
        if len(mine):
            means = mine.groupby("base_method")["accuracy"].mean()
            return float(means.max()), f"{means.idxmax()}{where}"
    return math.nan, ""
