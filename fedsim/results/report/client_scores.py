"""How the clients fare: accuracy on what each held out, of the served model and of its own.

A mean over clients counts every client once, however many samples it has, so it differs from the
accuracy of a split. The worst tenth is the mean over the worst tenth of clients, at least one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.results.analysis.named_runs import CELL, final_scores
from fedsim.results.analysis.significance import mean_interval
from fedsim.results.report.grid import Grid, grids_by_cell, over_seeds
from fedsim.results.report.numbers import half_text, percent
from fedsim.results.report.style import GREY, MethodStyle, cell_panels, study_styles, styled
from fedsim.results.study import Study

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
    rows = final_scores(study, scope="client", split=_SPLIT, metric="accuracy")
    rows = rows.rename(columns={"value": "accuracy"})
    columns = [*CELL, "method", "seed", "run_id", "model", "client_id", "accuracy", "num_samples"]
    return rows[columns].reset_index(drop=True)


def client_grids(study: Study) -> list[Grid]:
    """Mean, standard deviation and worst tenth over clients, by method; one table per cell.

    The gain is the mean difference of own and served model, over the clients that have both.
    """
    spread = final_scores(study, scope="global", split=_SPLIT)
    spread = spread[spread["metric"].isin(_METRICS)]
    gains = _gains(client_scores(study))
    models = [model for model in _MODELS if (spread["model"] == model).any()]
    header = [f"{_MODELS[model]}: {name}" for model in models for name in _METRICS.values()]
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


@styled
def client_accuracy(study: Study) -> Figure:
    """Accuracy of every client, one panel per data set and partition, one row per method.

    Filled: the served model. Hollow, below it: the client's own. Bars go from the first to the
    third quartile, with the median; marks are larger for clients that held out more samples.
    """
    scores = client_scores(study)
    styles = study_styles(study)
    methods = [method for method in styles if method in set(scores["method"])][::-1]
    height = 0.7 + 0.5 * max(len(methods), 3)
    figure, cells = cell_panels(
        scores, "no client was measured", "accuracy of a client, %", "", height
    )
    for axis, here in cells:
        for method, mine in here.groupby("method", sort=False):
            shift = 0.21 if len(set(mine["model"])) > 1 else 0.0
            for model, group in mine.groupby("model"):
                served = model == "global"
                place = methods.index(method) + (shift if served else -shift)
                _strip(axis, group, place, styles[method], served)
        axis.set_yticks(range(len(methods)), methods)
        axis.set_ylim(-0.6, max(len(methods), 1) - 0.4)
        axis.set_xlim(-3, 103)
    if set(_MODELS) <= set(scores["model"]):
        for label, fill in (("served model", GREY), ("the client's own", "white")):
            figure.axes[0].scatter([], [], s=30, color=fill, edgecolor=GREY, label=label)
        figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def _strip(
    axis: Axes, clients: pd.DataFrame, place: float, style: MethodStyle, filled: bool
) -> None:
    """The clients of one method as points around a line, and their quartiles."""
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


def _gains(scores: pd.DataFrame) -> dict[tuple[str, str, str], np.ndarray]:
    """Mean gain of own over served model, run by run, of clients that have both: by method."""
    keys = [*CELL, "method", "seed", "run_id"]
    wide = scores.pivot_table(index=[*keys, "client_id"], columns="model", values="accuracy")
    if not set(_MODELS) <= set(wide):
        return {}
    by_run = (wide["personal"] - wide["global"]).dropna().groupby(level=keys, sort=False).mean()
    by_method = by_run.groupby(level=[*CELL, "method"])
    return {method: gains.to_numpy() for method, gains in by_method}
