"""How the clients fare: accuracy on what each held out, of the served model and of its own.

A mean over clients counts every client once, however many samples it has, so it differs from the
accuracy of a split. The worst tenth is the mean over the worst tenth of clients, at least one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.results.analysis.named_runs import CELL, curves, last_rounds
from fedsim.results.analysis.significance import mean_interval
from fedsim.results.report.sections import Grid
from fedsim.results.report.style import GREY, MethodStyle, method_styles, panels
from fedsim.results.report.terminal import NONE, half_text, percent

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedsim.results.tables.reader import Study

__all__ = ["client_accuracy", "client_grids", "client_scores"]

_SPLIT = "client_holdout"
_MODELS = {"global": "served", "personal": "own"}
_METRICS = {"client_mean": "mean", "client_std": "sd", "client_worst10": "worst tenth"}
_GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, spread evenly over 0..1


def client_scores(study: Study) -> pd.DataFrame:
    """Every client's accuracy in the last round of the finished runs.

    Returns:
        One row per run, model and client: `dataset, partition, method, seed, run_id, model`
        (`global`: the served one, `personal`: the client's own after its last training),
        `client_id, accuracy` (0..1) and `num_samples` (held out).
    """
    rows = _last(study, "client")
    rows = rows[rows["metric"] == "accuracy"].rename(columns={"value": "accuracy"})
    columns = [*CELL, "method", "seed", "run_id", "model", "client_id", "accuracy", "num_samples"]
    return rows[columns].reset_index(drop=True)


def client_grids(study: Study) -> list[Grid]:
    """Mean, standard deviation and worst tenth over clients, by method; one table per cell.

    The gain is the mean difference of own and served model, over the clients that have both.
    """
    import numpy as np

    spread, gains = _last(study, "global"), _gains(client_scores(study))
    spread = spread[spread["metric"].isin(_METRICS)]
    models = [model for model in _MODELS if (spread["model"] == model).any()]
    header = ["method"]
    for model in models:
        header += [f"{_MODELS[model]}: {name}" for name in _METRICS.values()]
    header += ["gain"] if len(gains) else []
    grids = []
    for (dataset, partition), cell in spread.groupby(CELL, sort=False):
        rows = []
        for method, group in cell.groupby("method", sort=False):
            row = [str(method)]
            for model in models:
                mine = group[group["model"] == model]
                for metric in _METRICS:
                    row.append(_over_seeds(mine[mine["metric"] == metric], metric))
            if len(gains):
                own = gains.get((dataset, partition, method), np.empty(0))
                mean, _, high = mean_interval(own)
                row.append(half_text(mean, high, sign=True))
            rows.append(row)
        grids.append(Grid(f"{dataset}, {partition}", header, rows))
    return grids


def client_accuracy(study: Study) -> Figure:
    """Accuracy of every client, one panel per data set and partition, one row per method.

    Filled: the served model. Hollow, below it: the client's own. Bars go from the first to the
    third quartile, with the median; marks are larger for clients that held out more samples.
    """
    scores = client_scores(study)
    cells = list(dict.fromkeys(map(tuple, scores[CELL].to_numpy())))
    several = len({dataset for dataset, _ in cells}) > 1
    titles = [", ".join(cell) if several else cell[1] for cell in cells]
    styles = method_styles(curves(study)["method"])
    methods = [method for method in styles if method in set(scores["method"])][::-1]
    height = 0.7 + 0.5 * max(len(methods), 3)
    figure, axes = panels(
        titles or ["no client was measured"], "accuracy of a client, %", "", height
    )
    both = set(_MODELS) <= set(scores["model"])
    for axis, (dataset, partition) in zip(axes, cells, strict=False):
        here = scores[(scores["dataset"] == dataset) & (scores["partition"] == partition)]
        for method, mine in here.groupby("method", sort=False):
            shift = 0.21 if len(set(mine["model"])) > 1 else 0.0
            for model, group in mine.groupby("model"):
                served = model == "global"
                place = methods.index(method) + (shift if served else -shift)
                _strip(axis, group, place, styles[method], served)
        axis.set_yticks(range(len(methods)), methods)
        axis.set_ylim(-0.6, max(len(methods), 1) - 0.4)
        axis.set_xlim(-3, 103)
    if both and axes:
        for label, fill in (("served model", GREY), ("the client's own", "white")):
            axes[0].scatter([], [], s=30, color=fill, edgecolor=GREY, label=label)
        figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def _strip(
    axis: Axes, clients: pd.DataFrame, place: float, style: MethodStyle, filled: bool
) -> None:
    """The clients of one method as points around a line, and their quartiles."""
    import numpy as np

    values = 100 * clients["accuracy"].to_numpy()
    weight = np.sqrt(clients["num_samples"].fillna(1).to_numpy(dtype=float))
    spread = (np.arange(len(values)) * _GOLDEN) % 1 - 0.5
    axis.scatter(
        values,
        place + 0.32 * spread,
        s=3 + 13 * weight / max(weight.max(), 1.0),
        facecolor=style.color if filled else "none",
        edgecolor="none" if filled else style.color,
        linewidth=0.7,
        alpha=0.45 if filled else 0.6,
    )
    low, middle, high = np.percentile(values, [25, 50, 75])
    axis.plot([low, high], [place, place], color=style.color, linewidth=5, alpha=0.35,
              solid_capstyle="butt")  # fmt: skip
    axis.plot(middle, place, marker="|", markersize=11, markeredgewidth=2, color=style.color)


def _last(study: Study, scope: str) -> pd.DataFrame:
    """Evaluations on held-out client data in the last round of the finished runs, and whose."""
    rows = study.evaluations
    rows = rows[(rows["scope"] == scope) & (rows["split"] == _SPLIT)]
    rows = rows[["run_id", "round", "model", "client_id", "metric", "value", "num_samples"]]
    runs = last_rounds(study)
    runs = runs.loc[runs["status"] == "finished", ["run_id", "round", *CELL, "method", "seed"]]
    return runs.merge(rows, on=["run_id", "round"])


def _gains(scores: pd.DataFrame) -> dict[tuple[str, str, str], np.ndarray]:
    """Mean gain of own over served model, run by run, of clients that have both: by method."""
    keys = [*CELL, "method", "seed", "run_id"]
    wide = scores.pivot_table(index=[*keys, "client_id"], columns="model", values="accuracy")
    if not set(_MODELS) <= set(wide):
        return {}
    by_run = (wide["personal"] - wide["global"]).dropna().groupby(level=keys, sort=False).mean()
    by_method = by_run.groupby(level=[*CELL, "method"])
    return {method: gains.to_numpy() for method, gains in by_method}


def _over_seeds(rows: pd.DataFrame, metric: str) -> str:
    values: np.ndarray = rows.groupby("seed")["value"].mean().to_numpy()
    if not len(values):
        return NONE
    mean, _, high = mean_interval(values)
    return percent(mean) if metric == "client_std" else half_text(mean, high)
