"""Accuracy in parts, and what mean accuracy hides.

Parts: by domain on the test split, by client on what it held out, by network. A mean over all
samples hides who pays for it: a method may win on average and lose a domain. And a server may hold
several networks, of which the main table shows one. Beyond accuracy: classes that are missed, and
probabilities that do not mean what they say.
"""

from __future__ import annotations

from typing import Literal

import pandas as pd

from fedsim.results.analysis.named_runs import CELL, final_scores
from fedsim.results.report.grid import Grid, grids_by_cell, over_seeds
from fedsim.results.study import Study

Breakdown = Literal["domain", "client", "model"]
_WHERE: dict[Breakdown, tuple[str, str, str]] = {
    "domain": ("domain", "test", "domain"),
    "client": ("client", "client_holdout", "client_id"),
    "model": ("global", "test", "model"),
}
"""Of the table `evaluations`: the scope, the split, and the column that names the part."""

_BEYOND = {
    "balanced_accuracy": ("balanced accuracy, %", ""),
    "worst_class": ("worst class, %", ""),
    "nll": ("NLL, nats", ".3f"),
    "ece": ("ECE, %", ""),
}
"""Metrics of the table `evaluations`: title, and format where it is no share."""


def accuracy_by(study: Study, part: Breakdown) -> pd.DataFrame:
    """Accuracy in the last round of the finished runs, part by part.

    Args:
        study: The study.
        part: `domain`: of the served model, on the test split. `client`: on each one's held-out
            samples; methods without a global model serve each client its own. `model`: of every
            network that the server holds, on the test split, where it holds several.

    Returns:
        One row per run and part: `dataset, partition, method, seed, run_id, part` (name of the
        domain or network, number of the client), `accuracy` (0..1) and `num_samples` behind it.
    """
    scope, split, column = _WHERE[part]
    rows = final_scores(study, scope=scope, split=split, metric="accuracy")
    if part == "model":
        rows = rows[rows.groupby("run_id")["model"].transform("nunique") > 1]
    else:
        served = rows["model"] == "global"
        rows = rows[served | ~rows["run_id"].isin(rows.loc[served, "run_id"])]
    rows = rows.rename(columns={column: "part", "value": "accuracy"})
    columns = [*CELL, "method", "seed", "run_id", "part", "accuracy", "num_samples"]
    return rows[columns].reset_index(drop=True)


def breakdown_grids(study: Study, part: Breakdown) -> list[Grid]:
    """A table per data set and partition: a row per method, a column per part, and the worst part.

    The worst part is that of each run, averaged over seeds; of networks nobody needs the worst.
    """
    table = accuracy_by(study, part).rename(columns={"accuracy": "value"})
    worst = [] if part == "model" else ["worst"]
    grids = []
    for _, here in table.groupby(CELL, sort=False):
        parts = sorted(set(here["part"]))
        names = [f"client {int(name)}" if part == "client" else str(name) for name in parts]

        def cells(mine: pd.DataFrame, parts: list[str] = parts) -> list[str]:
            lowest = [
                mine.groupby(["run_id", "seed"], as_index=False)["value"].min() for _ in worst
            ]
            return [over_seeds(m) for m in [*(mine[mine["part"] == p] for p in parts), *lowest]]

        grids += grids_by_cell(here, [*names, *worst], cells)
    return grids


def beyond_accuracy(study: Study) -> list[Grid]:
    """Balanced accuracy, worst class, NLL and ECE on the test split, one table per cell.

    Of the served model in the last round of the finished runs; mean and half the t interval.
    """
    rows = final_scores(study, scope="global", split="test", model="global")
    rows = rows[rows["metric"].isin(_BEYOND)]

    def cells(mine: pd.DataFrame) -> list[str]:
        return [
            over_seeds(mine[mine["metric"] == metric], form=form)
            for metric, (_, form) in _BEYOND.items()
        ]

    return grids_by_cell(rows, [title for title, _ in _BEYOND.values()], cells)
