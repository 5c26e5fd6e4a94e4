"""Accuracy in parts, and measures beside accuracy.

Parts are domains of the test split, clients (on the samples that each held out) and networks. A
method may win on average and lose a domain, and a server may hold several networks, of which the
main table shows one. Measures beside accuracy show missed classes and wrong probabilities.
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
        part: `domain`: of the served model, on the test split. `client`: of the model that each
            client is served (its own, in methods without a global one), on its held-out samples.
            `model`: of every network of a server that holds several, on the test split.

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

    The worst part is that of each run, averaged over seeds. Networks have no such column.
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
