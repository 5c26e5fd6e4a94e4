"""Figures of clients: the samples of each by class, and the accuracy of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.results.analysis.named_runs import CELL, final_runs
from fedsim.results.report.breakdown import MODELS, client_scores
from fedsim.results.report.style import (
    GREY,
    MethodStyle,
    cell_panels,
    cell_titles,
    panels,
    study_styles,
    styled,
)
from fedsim.results.study import Study

_COLOR = "#0072B2"
_GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, spread evenly over 0..1
_MAX_BUBBLES = 30  # clients or classes; beyond that a map of shades


def label_counts(study: Study) -> dict[tuple[str, str], np.ndarray]:
    """Samples of each class and client, for the first seed of every data set and partition.

    Counts are (num_clients, num_classes), from the rows of round 0.
    """
    start = study.clients[(study.clients["round"] == 0) & study.clients["label_counts"].notna()]
    runs = final_runs(study)  # sorted by cell
    runs = runs[runs["run_id"].isin(start["run_id"])].sort_values("seed", kind="stable")
    found: dict[tuple[str, str], np.ndarray] = {}
    for run in runs.drop_duplicates(CELL).sort_index().itertuples():
        rows = start[start["run_id"] == run.run_id].sort_values("client_id")
        counts = [np.asarray(counts) for counts in rows["label_counts"]]
        found[run.dataset, run.partition] = np.stack(counts)
    return found


def client_split(study: Study) -> Figure:
    """Samples per client and class, one panel per partition, first seed."""
    splits = label_counts(study)
    named = dict(zip(cell_titles(splits), splits.values(), strict=True))
    rows: pd.DataFrame = study.evaluations[study.evaluations["scope"] == "class"]
    first = rows[rows["run_id"] == next(iter(rows["run_id"]), None)]
    return partition_figure(named, list(dict.fromkeys(first["class_name"])))


@styled
def partition_figure(splits: Mapping[str, np.ndarray], classnames: Sequence[str] = ()) -> Figure:
    """Samples per client and class: bubbles by area for up to 30 of both, shades beyond.

    `splits` maps panel titles to counts (num_clients, num_classes). `classnames` stand under the
    columns of panels with as many classes, at most 15.
    """
    clients = max((len(counts) for counts in splits.values()), default=4)
    height = min(4.2, 1.4 + 0.19 * min(clients, _MAX_BUBBLES))
    titles = list(splits) or ["no split yet"]
    alike = len({len(counts) for counts in splits.values()}) < 2
    figure, axes = panels(titles, "class", "client", height, share_x=False, share_y=alike)
    for axis, counts in zip(axes, splits.values(), strict=False):
        axis.grid(False)
        if max(counts.shape) <= _MAX_BUBBLES:
            _bubbles(axis, counts)
        else:
            edges = [[place - 0.5 for place in range(size + 1)] for size in counts.shape[::-1]]
            shades = axis.pcolormesh(*edges, counts, cmap="Blues", vmin=0, rasterized=True)
            bar = figure.colorbar(shades, ax=axis, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7, colors=GREY, length=2)
        if counts.shape[1] == len(classnames) <= 15:
            places = range(len(classnames))
            axis.set_xticks(places, classnames, rotation=40, ha="right", rotation_mode="anchor")
        axis.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axis.set_ylim(len(counts) - 0.3, -0.7)  # client 0 on top
    return figure


def _bubbles(axis: Axes, counts: np.ndarray) -> None:
    client, label = np.nonzero(counts)
    values = counts[client, label]
    largest = 190.0 * min(1.0, 10 / max(counts.shape))
    axis.scatter(label, client, s=largest * values / values.max() if len(values) else values,
                 color=_COLOR, alpha=0.75, linewidth=0)  # fmt: skip
    axis.set_xlim(-0.7, counts.shape[1] - 0.3)
    title = axis.get_title(loc="left")
    largest_text = f"largest: {values.max() if len(values) else 0} samples"
    axis.set_title(f"{title}\n{largest_text}")


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
    if set(MODELS) <= set(scores["model"]):
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
