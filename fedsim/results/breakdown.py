"""Accuracy within parts of the data: by domain on the test split, by client on what it held out.

A mean over all samples hides who pays for it: a method may win on average and lose a domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedsim.results.contents import Grid
from fedsim.results.finals import CELL, last_rounds
from fedsim.results.significance import mean_interval
from fedsim.results.text import NONE, half_text

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.results.tables import Study

__all__ = ["accuracy_by", "breakdown_grids"]

Part = Literal["domain", "client"]
_SPLITS: dict[Part, str] = {"domain": "test", "client": "client_holdout"}


def accuracy_by(study: Study, part: Part) -> pd.DataFrame:
    """Accuracy of the served model in the last round of the finished runs, part by part.

    Args:
        study: The study.
        part: `domain`: of the test split. `client`: each on its held-out samples; methods without
            a global model serve each client its own.

    Returns:
        One row per run and part: `dataset, partition, method, seed, run_id, part` (name of the
        domain, number of the client), `accuracy` (0..1) and `num_samples` behind it.
    """
    rows = study.evaluations
    rows = rows[
        (rows["scope"] == part) & (rows["split"] == _SPLITS[part]) & (rows["metric"] == "accuracy")
    ]
    served = rows["model"] == "global"
    rows = rows[served | ~rows["run_id"].isin(rows.loc[served, "run_id"])]
    rows = rows.rename(
        columns={"domain": "part", "value": "accuracy"}
        if part == "domain"
        else {"client_id": "part", "value": "accuracy"}
    )
    runs = last_rounds(study)
    runs = runs.loc[runs["status"] == "finished", ["run_id", "round", *CELL, "method", "seed"]]
    found = runs.merge(
        rows[["run_id", "round", "part", "accuracy", "num_samples"]], on=["run_id", "round"]
    )
    columns = [*CELL, "method", "seed", "run_id", "part", "accuracy", "num_samples"]
    return found[columns].reset_index(drop=True)


def breakdown_grids(study: Study, part: Part) -> list[Grid]:
    """A table per data set and partition: a row per method, a column per part, and the worst part.

    The worst part is that of each run, averaged over seeds.
    """
    table = accuracy_by(study, part)
    grids = []
    for cell, here in table.groupby(CELL, sort=False):
        parts = sorted(set(here["part"]))
        names = [str(name) if part == "domain" else f"client {int(name)}" for name in parts]
        rows = []
        for method, mine in here.groupby("method", sort=False):
            cells = [_over_seeds(mine[mine["part"] == name]) for name in parts]
            worst = mine.groupby(["run_id", "seed"], as_index=False)["accuracy"].min()
            rows.append([str(method), *cells, _over_seeds(worst)])
        grids.append(Grid(", ".join(cell), ["method", *names, "worst"], rows))
    return grids


def _over_seeds(rows: pd.DataFrame) -> str:
    values = rows.groupby("seed")["accuracy"].mean().to_numpy()
    if not len(values):
        return NONE
    mean, _, high = mean_interval(values)
    return half_text(mean, high)
