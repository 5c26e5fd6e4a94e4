"""The comparison of methods: means, paired differences, p values, ranks.

Accuracy is that of the last round of a finished run, on the test split. Runs of one data set,
partition and seed share their split, cohorts and initial weights whatever the method, so methods
are compared by the differences of such pairs. What a target is: `fedsim.results.costs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedsim.errors import ResultsError, did_you_mean
from fedsim.results.columns import CONFIG_PREFIX
from fedsim.results.costs import costs_to_targets, targets_of
from fedsim.results.finals import CEILINGS, CELL, curves, final_runs, last_rounds

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from fedsim.results.tables import Study

__all__ = ["holm", "mean_interval", "paired_test", "rank_methods", "summarise"]


def summarise(
    study: Study,
    reference_method: str | None = None,
    targets: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Compare the methods of a study, one row per data set, partition and method.

    Args:
        study: The study; it may still be running.
        reference_method: What the others are compared with; by default the setting
            `report.reference_method`, else the first method whose name starts with `fedavg`.
        targets: Shares of the way from zero-shot to the ceiling, see `fedsim.results.costs`; by
            default the setting `report.targets`, else 0.5 and 0.9.
        confidence: Coverage of the intervals.

    Returns:
        Accuracies and differences are in 0..1, costs per run: `dataset, partition, dirichlet_alpha,
        method, num_seeds, num_unfinished, accuracy_mean, accuracy_sd, accuracy_low, accuracy_high,
        difference, difference_low, difference_high, num_pairs, num_missing_pairs, p_value, p_holm,
        rounds, bytes_total, flops_total, best`, and for each target, here 50 %: `target_50,
        reached_50` (runs), `rounds_to_50, bytes_to_50, flops_to_50` (median over runs, infinite if
        not reached by half of them). `attrs` has `reference`, `confidence`, `shares` (the
        targets asked for), `targets` (one dict per data set and partition, which says where
        zero-shot and ceiling come from), `unfinished` (one dict per run) and `seeds`.

    Raises:
        ResultsError: The study has no such reference method.
    """
    import pandas as pd

    runs, table, last = final_runs(study), curves(study), last_rounds(study)
    finished = last[(last["status"] == "finished") & last["accuracy"].notna()]
    reference = _reference(runs, reference_method)
    if targets is None:
        targets = next(iter(_settings(runs, "report.targets")), (0.5, 0.9))
    goals = targets_of(table, finished, targets)
    rows: list[dict[str, Any]] = []
    for (dataset, partition, method), group in runs.groupby([*CELL, "method"], sort=False):
        cell = finished[(finished["dataset"] == dataset) & (finished["partition"] == partition)]
        mine = cell[cell["method"] == method]
        by_seed = mine.groupby("seed")["accuracy"].mean()
        row: dict[str, Any] = {
            "dataset": dataset,
            "partition": partition,
            "dirichlet_alpha": group["dirichlet_alpha"].iloc[0],
            "method": method,
            "num_seeds": len(by_seed),
            "num_unfinished": len(group) - len(mine),
            "accuracy_sd": by_seed.std(ddof=1),
        }
        names = ("accuracy_mean", "accuracy_low", "accuracy_high")
        row |= dict(zip(names, mean_interval(by_seed.to_numpy(), confidence), strict=True))
        against = cell[cell["method"] == reference].groupby("seed")["accuracy"].mean()
        row |= _paired(by_seed, against, method == reference, confidence)
        row |= {
            "rounds": mine["round"].mean(),
            "bytes_total": mine["bytes"].mean(),
            "flops_total": mine["flops"].mean(),
        }
        row |= costs_to_targets(table[table["run_id"].isin(mine["run_id"])], goals, targets)
        rows.append(row)
    ceilings = set(runs.loc[runs["base_method"].isin(CEILINGS), "method"])
    frame = pd.DataFrame(rows, columns=None if rows else ["dataset", "partition", "method"])
    if rows:
        frame["p_holm"] = holm(frame["p_value"].to_numpy())
        rivals = frame["accuracy_mean"].where(~frame["method"].isin(ceilings))
        frame["best"] = rivals.notna() & (
            rivals == rivals.groupby([frame[c] for c in CELL]).transform("max")
        )
    unfinished = runs.loc[~runs["run_id"].isin(finished["run_id"])]
    progress = last.set_index("run_id")["round"]
    frame.attrs = {
        "reference": reference,
        "confidence": confidence,
        "shares": [float(share) for share in targets],
        "targets": list(goals.values()),
        "seeds": sorted({int(seed) for seed in runs["seed"].dropna()}),
        "unfinished": [
            {
                "run_id": run.run_id,
                "method": run.method,
                "dataset": run.dataset,
                "partition": run.partition,
                "seed": run.seed,
                "status": run.status,
                "round": int(progress.get(run.run_id, -1)),
                "num_rounds": run.num_rounds,
            }
            for run in unfinished.itertuples()
        ],
    }
    return frame


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t interval; the interval is NaN for fewer than two values.

    >>> [round(x, 3) for x in mean_interval([0.8, 0.9, 1.0])]
    [0.9, 0.652, 1.148]
    """
    import numpy as np
    from scipy import stats

    values = np.asarray(values, dtype=float)
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if n == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def paired_test(differences: np.ndarray) -> float:
    """Two-sided p value of the paired t test.

    NaN for fewer than two pairs, and where all differences are one number other than 0: without
    spread the test has nothing to measure by.
    """
    import numpy as np
    from scipy import stats

    d = np.asarray(differences, dtype=float)
    if len(d) < 2:
        return math.nan
    spread = d.std(ddof=1)
    if spread <= 1e-12 * max(1.0, abs(d.mean())):
        return 1.0 if abs(d.mean()) <= 1e-12 else math.nan
    return float(2 * stats.t.sf(abs(d.mean()) / (spread / math.sqrt(len(d))), len(d) - 1))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction over all p values that are not NaN."""
    import numpy as np
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected


def rank_methods(summary: pd.DataFrame, reference_method: str | None = None) -> pd.DataFrame:
    """Average ranks over data sets, and Wilcoxon's signed-rank test against the reference.

    A data set counts once: a method's accuracy there is its mean over the partitions that every
    method finished. Methods that miss a data set are left out and named in `attrs["left_out"]`.

    Args:
        summary: What `summarise` returned.
        reference_method: By default that of the summary.

    Returns:
        One row per method, best rank first: `method, average_rank` (1 is best, ties share),
        `num_datasets, wins, losses` (data sets, against the reference), `difference` (median),
        `p_value, p_holm` (NaN for the reference and for one data set).
    """
    import numpy as np
    import pandas as pd
    from scipy import stats

    reference = reference_method or summary.attrs.get("reference")
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


def _paired(
    mine: pd.Series, reference: pd.Series, is_reference: bool, confidence: float
) -> dict[str, Any]:
    pairs = sorted(set(mine.index) & set(reference.index))
    names = ("difference", "difference_low", "difference_high")
    numbers: dict[str, Any] = dict.fromkeys([*names, "p_value"], math.nan)
    if not is_reference:
        d = mine.loc[pairs].to_numpy() - reference.loc[pairs].to_numpy()
        numbers |= dict(zip(names, mean_interval(d, confidence), strict=True))
        numbers["p_value"] = paired_test(d)
    missing = len(set(mine.index) ^ set(reference.index))
    return numbers | {"num_pairs": len(pairs), "num_missing_pairs": missing}


def _settings(runs: pd.DataFrame, path: str) -> list[Any]:
    """The values of a setting, where there are any."""
    column = CONFIG_PREFIX + path
    return list(runs[column].dropna()) if column in runs else []


def _reference(runs: pd.DataFrame, asked: str | None) -> str | None:
    """The name, as shown, of the reference method."""
    names = list(dict.fromkeys(runs["method"]))
    if asked is None:
        asked = next(iter(_settings(runs, "report.reference_method")), None)
        if asked not in {*names, *runs["base_method"]}:
            asked = None  # its runs have not started
    if asked is None:
        candidates = sorted((n for n in names if n.startswith("fedavg")), key=lambda n: (len(n), n))
        return candidates[0] if candidates else None
    if asked in names:
        return asked
    versions = list(dict.fromkeys(runs.loc[runs["base_method"] == asked, "method"]))
    if not versions:
        hint = did_you_mean(asked, names) if names else "the study has no runs"
        raise ResultsError(f"there is no reference method {asked!r} in the study; {hint}")
    return str(versions[0])
