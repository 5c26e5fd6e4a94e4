"""The runs that count: how they are called in tables and figures, their curves and last values.

A run counts when its phase is `final` (or not said). Methods are named by their own name, and by
the settings that tell them apart where a study holds one method in several versions. Partitions
are named by their scheme and alpha, and by what else differs (`dirichlet 0.05, 100 clients`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fedsim.results.columns import CONFIG_PREFIX

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.results.tables import Study

__all__ = ["CEILINGS", "CELL", "curves", "final_runs", "last_rounds", "method_order"]

CEILINGS = ("centralised", "centralized")
CELL = ["dataset", "partition"]  # what a comparison is made within
_FIRST = ("zero_shot", "synthetic_only", "prior_only", "local_only", "local")
# Settings that say which cell a run is in, or how it was computed, not which method it is.
_NOT_METHOD = {
    "method", "methods", "name", "dataset", "data", "partition", "partitions", "seed", "seeds",
    "study", "phase", "report", "resources", "engine", "results", "output", "sweep", "tune",
}  # fmt: skip
_NOT_PARTITION = {"seed", "partition_seed", "alpha", "dirichlet_alpha", "scheme", "name", "kind"}


def final_runs(study: Study) -> pd.DataFrame:
    """The runs that count, as in `study.runs`, with names to show.

    Returns:
        `study.runs` where `phase` is not `tune`, with `method` and `partition` as they are shown,
        `base_method` and `scheme` as they were, sorted by data set, partition, method and seed.
    """
    runs = study.runs[study.runs["phase"].fillna("final") == "final"].copy()
    runs["dataset"] = runs["dataset"].fillna("data").astype(object)
    runs["base_method"] = runs["method"].fillna("method").astype(object)
    runs["scheme"] = runs["partition"].fillna("data").astype(object)
    runs["partition"] = _partition_names(runs)
    runs["method"] = _method_names(runs)
    alpha = runs["dirichlet_alpha"].fillna(float("inf"))
    last = runs["scheme"].eq("iid").astype(int)
    order = runs.assign(
        _last=last, _alpha=alpha, _method=runs["method"].map(method_order)
    ).sort_values(["dataset", "_last", "_alpha", "partition", "_method", "seed", "run_id"])
    return order.drop(columns=["_last", "_alpha", "_method"]).reset_index(drop=True)


def method_order(method: str) -> tuple[int, str]:
    """Sort key: controls first, then FedAvg, the others by name, the ceiling last."""
    base = method.split(" ")[0]
    if base in _FIRST:
        return _FIRST.index(base), method
    if base in CEILINGS:
        return 99, method
    return (10 if base == "fedavg" else 11), method


def curves(study: Study) -> pd.DataFrame:
    """Accuracy and cumulative cost of every round of the runs that count.

    Returns:
        One row per run and round: `run_id, dataset, partition, dirichlet_alpha, scheme, method,
        base_method, seed, status, round, accuracy` (test split; NaN where not evaluated), and
        `bytes` and `flops` since the start, set-up included.
    """
    names = [
        "run_id",
        *CELL,
        "dirichlet_alpha",
        "scheme",
        "method",
        "base_method",
        "seed",
        "status",
    ]
    runs = final_runs(study)[names]
    rounds = study.rounds.sort_values(["run_id", "round"])
    bytes_round = rounds["bytes_up"].fillna(0) + rounds["bytes_down"].fillna(0)
    flops_round = rounds["train_flops"].fillna(0)
    table = rounds[["run_id", "round"]].assign(
        accuracy=_test_accuracy(study, rounds),
        bytes=bytes_round.astype("float64").groupby(rounds["run_id"]).cumsum(),
        flops=flops_round.astype("float64").groupby(rounds["run_id"]).cumsum(),
    )
    position = {run_id: place for place, run_id in enumerate(runs["run_id"])}
    merged = runs.merge(table, on="run_id", how="inner")
    merged["_place"] = merged["run_id"].map(position)
    return merged.sort_values(["_place", "round"]).drop(columns="_place").reset_index(drop=True)


def last_rounds(study: Study) -> pd.DataFrame:
    """One row per run that counts and has rounds: `curves` at its last round.

    Accuracy is that of the last round that was evaluated.
    """
    table = curves(study)
    table["accuracy"] = table.groupby("run_id")["accuracy"].ffill()
    return table.groupby("run_id", sort=False).tail(1).reset_index(drop=True)


def _test_accuracy(study: Study, rounds: pd.DataFrame) -> pd.Series:
    """`rounds.accuracy` where it is of the test split, else what `evaluations` says of it."""
    on_test = rounds["split"].fillna("test") == "test"
    accuracy = rounds["accuracy"].where(on_test)
    if accuracy.notna().any() or study.evaluations.empty:
        return accuracy
    rows = study.evaluations
    rows = rows[
        (rows["scope"] == "global") & (rows["split"] == "test") & (rows["metric"] == "accuracy")
    ]
    rows = rows[rows["model"] == "global"] if (rows["model"] == "global").any() else rows
    values = rows.groupby(["run_id", "round"])["value"].mean().rename("_value")
    return rounds.join(values, on=["run_id", "round"])["_value"]


def _partition_names(runs: pd.DataFrame) -> pd.Series:
    names = runs["scheme"].astype(object)
    alpha = runs["dirichlet_alpha"]
    names = names.where(alpha.isna(), names + " " + alpha.map("{:g}".format))
    if runs.groupby("dataset")["num_clients"].nunique().max() > 1:
        names = names + ", " + runs["num_clients"].astype(str) + " clients"
    for column in _config_columns(runs):
        path = column.removeprefix(CONFIG_PREFIX).split(".")
        if path[0] != "partition" or path[-1] in _NOT_PARTITION or path[-1] == "num_clients":
            continue
        text = runs[column].map(_text)
        if text.groupby(names).nunique().max() > 1:
            names = names + f", {path[-1]}=" + text
    return names


def _method_names(runs: pd.DataFrame) -> pd.Series:
    """The method, and the fewest settings that tell two runs of one cell apart."""
    names = runs["base_method"].astype(object)
    cell = [*CELL, "seed"]
    for method, group in runs.groupby("base_method"):
        columns = ["cache_init"] + [
            column
            for column in _config_columns(group)
            if column.removeprefix(CONFIG_PREFIX).split(".")[0] not in _NOT_METHOD
        ]
        texts = {column: group[column].map(_text) for column in columns}
        texts = {column: text for column, text in texts.items() if len(set(text)) > 1}
        shown = names.loc[group.index]
        while texts and _twice(group, shown, cell) > 0:
            left = {c: _twice(group, shown + "|" + text, cell) for c, text in texts.items()}
            best = min(left, key=lambda column: left[column])
            if left[best] == _twice(group, shown, cell):
                break
            name = best.removeprefix(CONFIG_PREFIX).split(".")[-1]
            value = texts.pop(best)
            part = value if best == "cache_init" else f"{name}=" + value
            shown = shown.where(shown == method, shown.str.rstrip(")") + ", " + part + ")")
            shown = shown.where(shown != method, f"{method} (" + part + ")")
        names.loc[group.index] = shown
    return names


def _twice(group: pd.DataFrame, shown: pd.Series, cell: list[str]) -> int:
    """How many runs share cell and name with an earlier one."""
    return int(group[cell].assign(_shown=shown).duplicated().sum())


def _config_columns(runs: pd.DataFrame) -> list[str]:
    return [column for column in runs.columns if column.startswith(CONFIG_PREFIX)]


def _text(value: Any) -> str:
    if value is None or value != value:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
