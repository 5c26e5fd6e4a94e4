"""The comparison of methods: means, differences, p values, non-inferiority, ranks.

Accuracy is that of the last round of a finished run, on the test split. Runs of one data set,
partition and seed share their split, cohorts and initial weights whatever the method, so methods
are compared by the differences of such pairs; without pairs (other seeds, or other settings of the
split in another study) by Welch's test. What a target is: `fedsim.results.analysis.targets`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fedsim.errors import ResultsError, did_you_mean
from fedsim.methods.shown import REFERENCE
from fedsim.results.analysis.named_runs import CELL, curves, final_runs, last_rounds, setting
from fedsim.results.analysis.pairing import pair_keys, why_unpaired
from fedsim.results.analysis.significance import (
    difference_of,
    holm,
    mean_interval,
    non_inferiority_test,
)
from fedsim.results.analysis.targets import costs_to_targets, targets_of
from fedsim.results.tables.reader import Tables


def summarise(
    study: Tables,
    reference_method: str | None = None,
    targets: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Compare the methods of a study, one row per data set, partition and method.

    Args:
        study: The study; it may still be running.
        reference_method: What the others are compared with; by default the setting
            `report.reference_method`, else the first method whose name starts with `fedavg`.
        targets: Shares of the way from zero-shot to the ceiling, see
            `fedsim.results.analysis.targets`; by default the setting `report.targets`, else 0.5
            and 0.9.
        confidence: Coverage of the intervals.

    Returns:
        Accuracies and differences are in 0..1, costs per run: `dataset, partition, dirichlet_alpha,
        method, num_seeds, num_unfinished, accuracy_mean, accuracy_sd, accuracy_low, accuracy_high,
        difference, difference_low, difference_high, num_pairs, num_missing_pairs, p_value, p_holm,
        test` (`paired` or `unpaired`), `rounds, bytes_total, flops_total, best`, and for each
        target, here 50 %: `target_50, reached_50` (runs), `rounds_to_50, bytes_to_50, flops_to_50`
        (median over runs, infinite if half of them did not reach it). `attrs` has `reference`,
        `confidence`, `shares` (the targets asked for), `targets` (a `Goal` per data set and
        partition), `unfinished` (one dict per run), `unpaired` (reason -> methods), `ceilings`
        (methods that are never the best), `levels` (zero-shot and methods on pooled data), `seeds`.

    Raises:
        ResultsError: The study has no such reference method.
    """
    runs, table, finished = final_runs(study), curves(study), _finished(study)
    reference = reference_of(study, reference_method)
    if targets is None:
        targets = next(iter(setting(runs, "report.targets").dropna()), (0.5, 0.9))
    goals = targets_of(table, finished, targets)
    rows: list[dict[str, Any]] = []
    for (dataset, partition, method), group in runs.groupby([*CELL, "method"], sort=False):
        cell = finished[(finished["dataset"] == dataset) & (finished["partition"] == partition)]
        mine = cell[cell["method"] == method]
        by_seed = mine.groupby("seed")["accuracy"].mean()
        mean, low, high = mean_interval(by_seed.to_numpy(), confidence)
        rows.append({
            "dataset": dataset,
            "partition": partition,
            "dirichlet_alpha": group["dirichlet_alpha"].iloc[0],
            "method": method,
            "num_seeds": len(by_seed),
            "num_unfinished": len(group) - len(mine),
            "accuracy_sd": by_seed.std(ddof=1),
            "accuracy_mean": mean,
            "accuracy_low": low,
            "accuracy_high": high,
            **_against(cell, method, reference, confidence),
            "rounds": mine["round"].mean(),
            "bytes_total": mine["bytes"].mean(),
            "flops_total": mine["flops"].mean(),
            **costs_to_targets(table[table["run_id"].isin(mine["run_id"])], goals, targets),
        })  # fmt: skip
    ceilings = set(runs.loc[runs["bound"], "method"])
    frame = pd.DataFrame(rows, columns=None if rows else ["dataset", "partition", "method"])
    if rows:
        frame["p_holm"] = holm(frame["p_value"].to_numpy())
        rivals = frame["accuracy_mean"].where(~frame["method"].isin(ceilings))
        frame["best"] = rivals.notna() & (
            rivals == rivals.groupby([frame[c] for c in CELL]).transform("max")
        )
    frame.attrs = {
        "reference": reference,
        "confidence": confidence,
        "shares": [float(share) for share in targets],
        "targets": list(goals.values()),
        "ceilings": sorted(ceilings),
        "levels": sorted(set(runs.loc[runs["level"], "method"])),
        "seeds": sorted({int(seed) for seed in runs["seed"].dropna()}),
        "unpaired": _unpaired(study, rows, reference),
        "unfinished": _unfinished(study, finished),
    }
    return frame


def non_inferiority(
    study: Tables,
    margin: float,
    confidence: float = 0.95,
    methods: Collection[str] | None = None,
) -> pd.DataFrame:
    """Whether each method is no more than `margin` below the best other method of its cell.

    The best other method is the one with the highest mean, bounds aside. It is chosen by the same
    numbers, so its mean tends to be too high, which makes the claim harder.

    Args:
        study: The study, or several.
        margin: In 0..1; 0.003 is 0.3 points.
        confidence: Of the one-sided lower bound.
        methods: Test the claims of these, and correct for them alone; by default all methods.

    Returns:
        One row per data set, partition and method that has a rival: `dataset, partition, method,
        rival, margin, margin_difference` (to the rival), `margin_low` (one-sided lower bound),
        `margin_test` (`paired` or `unpaired`), `margin_p, margin_p_holm` (small: not inferior).

    Raises:
        ResultsError: The margin is negative or 1 or more.
    """
    if not 0 <= margin < 1:
        raise ResultsError(f"the margin is {100 * margin:g} points; it must be from 0 to below 100")
    columns = [*CELL, "method", "rival", "margin", "margin_difference", "margin_low",
               "margin_test", "margin_p"]  # fmt: skip
    rows = []
    finished = _finished(study)
    rivals = finished[~finished["bound"]]
    for cell, group in rivals.groupby(CELL, sort=False):
        means = group.groupby(["method", "seed"])["accuracy"].mean().groupby("method").mean()
        for method in dict.fromkeys(group["method"]):
            others = means.drop(method)
            if others.empty or (methods is not None and method not in methods):
                continue
            rival = str(others.idxmax())
            found, low, p = non_inferiority_test(
                _by_pair(group, method), _by_pair(group, rival), margin, confidence
            )
            rows.append([*cell, method, rival, margin, found.mean, low, found.test, p])
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(margin_p_holm=holm(frame["margin_p"].to_numpy()))


def rank_methods(summary: pd.DataFrame) -> pd.DataFrame:
    """Average ranks over data sets, and Wilcoxon's signed-rank test against the reference.

    A data set counts once: a method's accuracy there is its mean over the partitions that every
    method finished. Methods that miss a data set are left out and named in `attrs["left_out"]`.

    Returns:
        One row per method, best rank first: `method, average_rank` (1 is best, ties share),
        `num_datasets, wins, losses` (data sets, against the reference), `difference` (median),
        `p_value, p_holm` (NaN for the reference and for one data set).
    """
    reference = summary.attrs.get("reference")
    wide = summary.pivot_table(index=CELL, columns="method", values="accuracy_mean", sort=False)
    datasets = set(summary["dataset"])
    complete = [m for m in wide if set(wide[m].dropna().index.get_level_values(0)) == datasets]
    means = wide[complete].dropna().groupby(level="dataset", sort=False).mean()
    ranks = means.rank(axis=1, ascending=False).mean()
    rows = []
    for method in complete:
        row = {"method": method, "average_rank": ranks[method], "num_datasets": len(means)}
        if reference in complete:
            d = (means[method] - means[reference]).to_numpy()
            p = math.nan
            if method != reference and len(d) > 1:
                p = float(stats.wilcoxon(d).pvalue) if np.any(d != 0) else 1.0
            row |= {"wins": int((d > 0).sum()), "losses": int((d < 0).sum())}
            row |= {"difference": float(np.median(d)) if len(d) else math.nan, "p_value": p}
        rows.append(row)
    frame = pd.DataFrame(rows)
    if "p_value" in frame:
        frame["p_holm"] = holm(frame["p_value"].to_numpy())
    if rows:
        frame = frame.sort_values("average_rank", kind="stable").reset_index(drop=True)
    frame.attrs = {"reference": reference, "left_out": sorted(set(wide) - set(complete))}
    return frame


def _finished(study: Tables) -> pd.DataFrame:
    """Last rounds of the finished runs, and what makes them pairs."""
    last = last_rounds(study)
    finished = last[(last["status"] == "finished") & last["accuracy"].notna()]
    return finished.assign(pair=finished["run_id"].map(pair_keys(study)))


def _unfinished(study: Tables, finished: pd.DataFrame) -> list[dict[str, Any]]:
    """The other runs: what they are, the last round of each (-1 without) and how many it has."""
    runs = final_runs(study)[["run_id", "study", "method", *CELL, "seed", "status", "num_rounds"]]
    runs = runs[~runs["run_id"].isin(finished["run_id"])]
    progress = last_rounds(study).set_index("run_id")["round"]
    runs["round"] = runs["run_id"].map(progress).fillna(-1).astype("int64")
    return runs.astype(object).where(runs.notna(), None).to_dict("records")


def _by_pair(cell: pd.DataFrame, method: str | None) -> pd.Series:
    """Accuracy of a method in one cell, indexed by what makes a pair."""
    return cell[cell["method"] == method].groupby("pair")["accuracy"].mean()


def _against(
    cell: pd.DataFrame, method: str, reference: str | None, confidence: float
) -> dict[str, Any]:
    """The columns of a row that compare it with the reference."""
    found = difference_of(_by_pair(cell, method), _by_pair(cell, reference), confidence)
    if method == reference:
        nan = math.nan
        found = found._replace(mean=nan, low=nan, high=nan, p_value=nan, test=None)
    names = {"mean": "difference", "low": "difference_low", "high": "difference_high"}
    return {names.get(name, name): value for name, value in found._asdict().items()}


def _unpaired(
    study: Tables, rows: list[dict[str, Any]], reference: str | None
) -> dict[str, list[str]]:
    """Why rows are not compared by pairs: reason -> methods."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["test"] == "unpaired" and reference is not None:
            names = (row["dataset"], row["partition"], row["method"], reference)
            reasons.setdefault(why_unpaired(study, *names), []).append(row["method"])
    return {reason: list(dict.fromkeys(methods)) for reason, methods in reasons.items()}


def reference_of(study: Tables, asked: str | None) -> str | None:
    """The name, as shown, of the reference method; of several studies the first decides."""
    places = {name: place for place, name in enumerate(dict.fromkeys(study.runs["study"]))}
    runs = final_runs(study).sort_values("study", key=lambda s: s.map(places), kind="stable")
    names = list(dict.fromkeys(runs["method"]))
    if asked is None:
        asked = next(iter(setting(runs, "report.reference_method").dropna()), None)
        if asked not in {*names, *runs["base_method"]}:
            asked = None  # its runs have not started
    if asked is None:
        candidates = [name for name in names if name.startswith(REFERENCE)]
        bases = {name: name.partition(" [")[0] for name in candidates}
        return min(candidates, key=lambda n: (len(bases[n]), bases[n]), default=None)
    if asked in names:
        return asked
    versions = list(dict.fromkeys(runs.loc[runs["base_method"] == asked, "method"]))
    if not versions:
        hint = did_you_mean(asked, names) if names else "the study has no runs"
        raise ResultsError(f"there is no reference method {asked!r} in the study; {hint}")
    return str(versions[0])
