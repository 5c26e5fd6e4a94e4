"""Accuracy in parts: by domain on the test split, by client on what it held out, by network.

A mean over all samples hides who pays for it: a method may win on average and lose a domain. And a
server may hold several networks, of which the main table shows one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedsim.results.analysis.named_runs import CELL, last_rounds
from fedsim.results.analysis.significance import mean_interval
from fedsim.results.report.sections import Grid
from fedsim.results.report.terminal import NONE, half_text

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.results.tables.reader import Study

__all__ = ["accuracy_by", "breakdown_grids"]

Part = Literal["domain", "client", "model"]
_WHERE: dict[Part, tuple[str, str, str]] = {
    "domain": ("domain", "test", "domain"),
    "client": ("client", "client_holdout", "client_id"),
    "model": ("global", "test", "model"),
}
"""Of the table `evaluations`: the scope, the split, and the column that names the part."""


def accuracy_by(study: Study, part: Part) -> pd.DataFrame:
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
    rows = study.evaluations
    rows = rows[
        (rows["scope"] == scope) & (rows["split"] == split) & (rows["metric"] == "accuracy")
    ]
    if part == "model":
        rows = rows[rows.groupby("run_id")["model"].transform("nunique") > 1]
    else:
        served = rows["model"] == "global"
        rows = rows[served | ~rows["run_id"].isin(rows.loc[served, "run_id"])]
    rows = rows.rename(columns={column: "part", "value": "accuracy"})
    runs = last_rounds(study)
    runs = runs.loc[runs["status"] == "finished", ["run_id", "round", *CELL, "method", "seed"]]
    found = runs.merge(
        rows[["run_id", "round", "part", "accuracy", "num_samples"]], on=["run_id", "round"]
    )
    columns = [*CELL, "method", "seed", "run_id", "part", "accuracy", "num_samples"]
    return found[columns].reset_index(drop=True)


def breakdown_grids(study: Study, part: Part) -> list[Grid]:
    """A table per data set and partition: a row per method, a column per part, and the worst part.

    The worst part is that of each run, averaged over seeds; of networks nobody needs the worst.
    """
    table = accuracy_by(study, part)
    grids = []
    for cell, here in table.groupby(CELL, sort=False):
        parts = sorted(set(here["part"]))
        names = [f"client {int(name)}" if part == "client" else str(name) for name in parts]
        worst = [] if part == "model" else ["worst"]
        rows = []
        for method, mine in here.groupby("method", sort=False):
            cells = [_over_seeds(mine[mine["part"] == name]) for name in parts]
            if worst:
                lowest = mine.groupby(["run_id", "seed"], as_index=False)["accuracy"].min()
                cells.append(_over_seeds(lowest))
            rows.append([str(method), *cells])
        grids.append(Grid(", ".join(cell), ["method", *names, *worst], rows))
    return grids


def _over_seeds(rows: pd.DataFrame) -> str:
    values = rows.groupby("seed")["accuracy"].mean().to_numpy()
    if not len(values):
        return NONE
    mean, _, high = mean_interval(values)
    return half_text(mean, high)
