"""What the mean accuracy hides: classes that are missed, and probabilities that are not meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.results.analysis.named_runs import CELL, last_rounds
from fedsim.results.analysis.significance import mean_interval
from fedsim.results.report.sections import Grid
from fedsim.results.report.terminal import NONE, half_text

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.results.tables.reader import Study

__all__ = ["beyond_accuracy"]

_SHARES = {"balanced_accuracy": "balanced accuracy, %", "worst_class": "worst class, %"}
_OTHERS = {"nll": "NLL, nats", "ece": "ECE, %"}


def beyond_accuracy(study: Study) -> list[Grid]:
    """Balanced accuracy, worst class, NLL and ECE on the test split, one table per cell.

    Of the served model in the last round of the finished runs; mean and half the t interval.
    """
    rows = study.evaluations
    rows = rows[(rows["scope"] == "global") & (rows["split"] == "test")]
    rows = rows[(rows["model"] == "global") & rows["metric"].isin([*_SHARES, *_OTHERS])]
    runs = last_rounds(study)
    runs = runs.loc[runs["status"] == "finished", ["run_id", "round", *CELL, "method", "seed"]]
    found = runs.merge(rows[["run_id", "round", "metric", "value"]], on=["run_id", "round"])
    titles = _SHARES | _OTHERS
    grids = []
    for cell, group in found.groupby(CELL, sort=False):
        table = [
            [str(method), *(_text(mine[mine["metric"] == m].groupby("seed")["value"].mean(), m)
                            for m in titles)]
            for method, mine in group.groupby("method", sort=False)
        ]  # fmt: skip
        grids.append(Grid(", ".join(cell), ["method", *titles.values()], table))
    return grids


def _text(by_seed: pd.Series, metric: str) -> str:
    if by_seed.empty:
        return NONE
    mean, _, high = mean_interval(by_seed.to_numpy())
    if metric != "nll":
        return half_text(mean, high)
    return f"{mean:.3f}" if high != high else f"{mean:.3f} ± {high - mean:.3f}"
