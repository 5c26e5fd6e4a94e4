"""Accuracy in parts, how clients fare, and measures beside accuracy.

Parts are domains of the test split, clients (on the samples that each held out) and networks. A
method may win on average and lose a domain, and a server may hold several networks, of which the
main table shows one. A mean over clients counts every client once, however many samples it has, so
it differs from the accuracy of a split. The worst tenth is the mean over the worst tenth of
clients, at least one. Measures beside accuracy show missed classes and wrong probabilities.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from fedsim.results.analysis.named_runs import CELL, final_scores
from fedsim.results.analysis.significance import mean_interval
from fedsim.results.report.grid import Grid, grids_by_cell, over_seeds
from fedsim.results.report.numbers import half_text, percent
from fedsim.results.study import Study

HELD_OUT = "client_holdout"
Breakdown = Literal["domain", "client", "model"]
_WHERE: dict[Breakdown, tuple[str, str, str]] = {
    "domain": ("domain", "test", "domain"),
    "client": ("client", HELD_OUT, "client_id"),
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

MODELS = {"global": "served", "personal": "own"}
_METRICS = {"client_mean": "mean", "client_std": "sd", "client_worst10": "worst tenth"}


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
    rows = _accuracies(study, scope, split, *dict.fromkeys(["model", column]))
    if part == "model":
        rows = rows[rows.groupby("run_id")["model"].transform("nunique") > 1]
    else:
        served = rows["model"] == "global"
        rows = rows[served | ~rows["run_id"].isin(rows.loc[served, "run_id"])].drop(columns="model")
    return rows.rename(columns={column: "part"}).reset_index(drop=True)


def client_scores(study: Study) -> pd.DataFrame:
    """Every client's accuracy in the last round of the finished runs.

    Returns:
        One row per run, model and client: `dataset, partition, method, seed, run_id, model`
        (`global`: the served one, `personal`: the client's own after its last training),
        `client_id, accuracy` (0..1) and `num_samples` (held out).
    """
    return _accuracies(study, "client", HELD_OUT, "model", "client_id")


def _accuracies(study: Study, scope: str, split: str, *parts: str) -> pd.DataFrame:
    rows = final_scores(study, scope=scope, split=split, metric="accuracy")
    rows = rows.rename(columns={"value": "accuracy"})
    return rows[[*CELL, "method", "seed", "run_id", *parts, "accuracy", "num_samples"]]


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


def client_grids(study: Study) -> list[Grid]:
    """Mean, standard deviation and worst tenth over clients, by method; one table per cell.

    The gain is the mean difference of own and served model, over the clients that have both.
    """
    spread = final_scores(study, scope="global", split=HELD_OUT)
    spread = spread[spread["metric"].isin(_METRICS)]
    gains = _gains(client_scores(study))
    models = [model for model in MODELS if (spread["model"] == model).any()]
    header = [f"{MODELS[model]}: {name}" for model in models for name in _METRICS.values()]
    header += ["gain"] if len(gains) else []

    def cells(mine: pd.DataFrame) -> list[str]:
        texts = []
        for model in models:
            for metric in _METRICS:
                rows = mine[(mine["model"] == model) & (mine["metric"] == metric)]
                if metric == "client_std":  # a spread is shown without one of its own
                    texts.append(percent(rows.groupby("seed")["value"].mean().mean()))
                else:
                    texts.append(over_seeds(rows))
        if len(gains):
            own = gains.get(tuple(mine[[*CELL, "method"]].iloc[0]), np.empty(0))
            mean, _, high = mean_interval(own)
            texts.append(half_text(mean, high, sign=True))
        return texts

    return grids_by_cell(spread, header, cells)


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


def _gains(scores: pd.DataFrame) -> dict[tuple[str, str, str], np.ndarray]:
    """Mean gain of own over served model, run by run, of clients that have both: by method."""
    keys = [*CELL, "method", "seed", "run_id"]
    wide = scores.pivot_table(index=[*keys, "client_id"], columns="model", values="accuracy")
    if not set(MODELS) <= set(wide):
        return {}
    by_run = (wide["personal"] - wide["global"]).dropna().groupby(level=keys, sort=False).mean()
    by_method = by_run.groupby(level=[*CELL, "method"])
    return {method: gains.to_numpy() for method, gains in by_method}
