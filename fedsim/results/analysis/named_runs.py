"""The runs that count: their names in tables and figures, their curves and last values.

A run counts if its phase is `final` or missing. A partition is named by its scheme and number
(`dirichlet_label 0.05`, `pathological 2`: two classes per client), and by other settings of the
data, or of all methods, that the study varies (`dirichlet_label 0.05, shots=4`). A method is named
by its own name, and by the settings that tell its versions apart where a study holds several. Of
several studies (`fedsim.results.several`) each is named by itself; methods of equal names get the
name of their study: `cachefl [quickstart]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pandas as pd

from fedsim.errors import ResultsError, did_you_mean
from fedsim.methods.shown import CONTROLS, REFERENCE
from fedsim.results.tables.columns import CONFIG_PREFIX
from fedsim.results.tables.reader import Selection, Tables

T = TypeVar("T", bound=Tables)
CELL = ["dataset", "partition"]  # what a comparison is made within
# Settings that say where or how a run was computed, or what has a column of its own.
_ASIDE = {
    "study", "output", "method", "use", "phase", "seed", "report", "engine", "resources",
    "failures", "evaluation",
}  # fmt: skip
_NAMED = {"seed", "scheme", "dirichlet_alpha", "num_clients", "name", "path"}


def _once(compute: Callable[[Tables], pd.DataFrame]) -> Callable[[Tables], pd.DataFrame]:
    """Compute once per loaded study; callers get a copy that they may add columns to."""
    known: WeakKeyDictionary[Tables, pd.DataFrame] = WeakKeyDictionary()

    @wraps(compute)
    def get(study: Tables) -> pd.DataFrame:
        if study not in known:
            known[study] = compute(study)
        return known[study].copy(deep=False)

    return get


@_once
def final_runs(study: Tables) -> pd.DataFrame:
    """The runs that count and that the study's selection shows, with names to show.

    Returns:
        `study.runs` where `phase` is not `tune`, with `method` and `partition` as they are shown,
        `base_method` (the built-in zero-shot or ceiling behind a method, else its own name),
        `bound` (a ceiling, or a prior that has seen the data: never the best) and `level`
        (zero-shot or a ceiling: a line that curves are seen against), sorted by data set,
        partition, method and seed.
    """
    runs = study.runs[study.runs["phase"].fillna("final") == "final"].copy()
    runs["dataset"] = runs["dataset"].fillna("data").astype(object)
    runs["method"] = runs["method"].fillna("method").astype(object)
    runs["level"] = runs["pooled"] | runs["zero_shot"]
    use = setting(runs, "use").fillna(runs["method"])
    built_in = runs["level"] & ~use.astype(str).str.contains(".py", regex=False)
    runs["base_method"] = runs["method"].where(~built_in, use)
    leaks = setting(runs, "distill.prior_saw_data").eq(True)
    runs["bound"] = runs["pooled"] | leaks
    for name in ("partition", "partition_scheme"):
        runs[name] = runs[name].fillna("data").astype(object)
    studies = [group for _, group in runs.groupby("study", sort=False, dropna=False)]
    axes = dict.fromkeys(column for group in studies for column in _axes(group))
    numbers = _numbers(runs)
    runs["partition"] = _partition_names(runs, axes)
    for group in studies:
        own = runs.loc[group.index]
        runs.loc[group.index, "method"] = _method_names(own)
    runs["method"] = runs["method"].where(~leaks, runs["method"] + " (leak)")
    homes = runs.groupby([*CELL, "method"])["study"].nunique()
    shared = runs["method"].isin(homes.index[homes > 1].get_level_values("method"))
    runs["method"] = runs["method"].where(~shared, runs["method"] + " [" + runs["study"] + "]")
    keys = {
        "_last": runs["partition_scheme"].eq("iid").astype(int),
        "_alpha": runs["dirichlet_alpha"].fillna(float("inf")),
        "_number": numbers,
        "_method": runs["method"].map(method_order),
    }
    order = [
        "dataset", "_last", "_alpha", "_number", "partition", "pooled", "_method", "seed", "run_id"
    ]  # fmt: skip
    runs = runs.assign(**keys).sort_values(order).drop(columns=list(keys))
    methods, partitions = study.selection
    if methods:
        runs = runs[runs["method"].isin(methods) | runs["base_method"].isin(methods)]
    if partitions:
        runs = runs[runs["partition"].isin(partitions)]
    return runs.reset_index(drop=True)


def select(study: T, methods: Collection[str] = (), partitions: Collection[str] = ()) -> T:
    """The same study, of which only the runs of these methods and partitions count; none: all.

    They are named as in tables; a method's own name stands for all of its versions.

    Raises:
        ResultsError: There is no such method or partition.
    """
    runs = final_runs(study)
    for asked, columns in ((methods, ["method", "base_method"]), (partitions, ["partition"])):
        known = {name for column in columns for name in runs[column]}
        for name in asked:
            if name not in known:
                hint = did_you_mean(name, known) if known else "the study has no runs"
                raise ResultsError(f"there is no {columns[0]} {name!r} in the study; {hint}")
    return study.showing(Selection(tuple(methods), tuple(partitions)))


def method_order(method: str) -> tuple[int, str]:
    """Sort key: controls first, then FedAvg, then the others by name."""
    base = method.split(" ")[0]
    if base in CONTROLS:
        return CONTROLS.index(base), method
    return (10 if base.startswith(REFERENCE) else 11), method


_OF_RUNS = [
    "run_id", *CELL, "dirichlet_alpha", "partition_scheme", "method", "base_method", "pooled",
    "zero_shot", "level", "bound", "seed", "status",
]  # fmt: skip


@_once
def curves(study: Tables) -> pd.DataFrame:
    """Accuracy and cumulative cost of every round of the runs that count.

    Returns:
        One row per run and round: the columns `_OF_RUNS` of `final_runs`, `round`, `accuracy` (test
        split; NaN where not evaluated), and `bytes` and `flops` since the start, set-up included.
    """
    runs = final_runs(study)[_OF_RUNS]
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


@_once
def last_rounds(study: Tables) -> pd.DataFrame:
    """One row per run that counts and has rounds: `curves` at its last round.

    Accuracy is that of the last round that was evaluated.
    """
    table = curves(study)
    table["accuracy"] = table.groupby("run_id")["accuracy"].ffill()
    return table.groupby("run_id", sort=False).tail(1).reset_index(drop=True)


def final_scores(study: Tables, **where: str) -> pd.DataFrame:
    """Rows of `evaluations` in the last round of the finished runs, with their runs' names.

    `where` gives values that columns must have, such as `scope="client"`. The rows also have the
    columns `dataset, partition, method, seed`.
    """
    rows = study.evaluations
    for column, value in where.items():
        rows = rows[rows[column] == value]
    runs = last_rounds(study)
    runs = runs.loc[runs["status"] == "finished", ["run_id", "round", *CELL, "method", "seed"]]
    return runs.merge(rows, on=["run_id", "round"])


def setting(runs: pd.DataFrame, path: str) -> pd.Series:
    """The values of a setting in `runs`, such as `train.lr`; missing where a run lacks it."""
    missing = pd.Series(None, index=runs.index, dtype=object)
    return runs.get(CONFIG_PREFIX + path, missing)


def setting_paths(runs: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of settings, and the parts of each one's path."""
    columns = [column for column in runs if column.startswith(CONFIG_PREFIX)]
    return {column: column.removeprefix(CONFIG_PREFIX).split(".") for column in columns}


def setting_text(value: Any) -> str:
    """The value of a `config.*` column in words."""
    if value is None or value != value:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _test_accuracy(study: Tables, rounds: pd.DataFrame) -> pd.Series:
    """`rounds.accuracy` where it is of the test split; if it never is, that of `evaluations`."""
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


def _numbers(runs: pd.DataFrame) -> pd.Series:
    """The number at the end of a partition's label, to sort by; NaN without one."""
    ends = [
        label.removeprefix(scheme)
        for label, scheme in zip(runs["partition"], runs["partition_scheme"], strict=True)
    ]
    return pd.to_numeric(pd.Series(ends, runs.index, dtype=object), errors="coerce")


def _partition_names(runs: pd.DataFrame, axes: Iterable[str]) -> pd.Series:
    """The labels of the partitions, and the values of the columns in `axes`."""
    names = runs["partition"]
    for column in axes:
        if column == "num_clients":
            names = names + ", " + runs[column].astype(str) + " clients"
        else:
            names = names + f", {_leaf(column)}=" + runs[column].map(setting_text)
    return names


def _axes(runs: pd.DataFrame) -> list[str]:
    """The columns that tell the partitions of one study apart, beside scheme and number."""
    axes = []
    if runs.groupby("dataset")["num_clients"].nunique().max() > 1:
        axes.append("num_clients")
    paths = setting_paths(runs)
    data = [column for column, path in paths.items() if path[0] in ("data", "partition")]
    for column, text in _texts(runs, data).items():
        names = _partition_names(runs, axes)
        if _leaf(column) not in _NAMED and text.groupby(names).nunique().max() > 1:
            axes.append(column)
    # Axes of the study: settings of which every method has the same several values.
    if len(set(runs["method"])) > 1:
        cell = runs[["dataset", "method", "seed"]]
        for column, text in _texts(runs, _method_columns(runs)).items():
            names, longer = _partition_names(runs, axes), _partition_names(runs, [*axes, column])
            values = {frozenset(group) for _, group in text.groupby(runs["method"])}
            if len(values) == 1 and _twice(cell, longer) < _twice(cell, names):
                axes.append(column)
    return axes


def _method_names(runs: pd.DataFrame) -> pd.Series:
    """The method, and the fewest settings that tell two runs of one cell apart."""
    names = runs["method"].copy()
    for method, group in runs.groupby("method"):
        cell, shown = group[[*CELL, "seed"]], names.loc[group.index]
        texts = _texts(group, ["cache_init", *_method_columns(group)])
        while texts and _twice(cell, shown) > 0:
            left = {column: _twice(cell, shown + "|" + text) for column, text in texts.items()}
            best = min(left, key=lambda column: left[column])
            if left[best] == _twice(cell, shown):
                break
            value = texts.pop(best)
            part = value if best == "cache_init" else f"{_leaf(best)}=" + value
            first = (shown == method).all()
            shown = shown + " (" + part + ")" if first else shown.str[:-1] + ", " + part + ")"
        names.loc[group.index] = shown
    return names


def _twice(cell: pd.DataFrame, shown: pd.Series) -> int:
    """How many runs share cell and name with an earlier one."""
    return int(cell.assign(_shown=shown).duplicated().sum())


def _texts(runs: pd.DataFrame, columns: list[str]) -> dict[str, pd.Series]:
    """The columns that hold more than one value, as text."""
    texts = {column: runs[column].map(setting_text) for column in columns}
    return {column: text for column, text in texts.items() if len(set(text)) > 1}


def _method_columns(runs: pd.DataFrame) -> list[str]:
    aside = {*_ASIDE, "data", "partition"}
    return [column for column, path in setting_paths(runs).items() if path[0] not in aside]


def _leaf(column: str) -> str:
    return column.split(".")[-1]
