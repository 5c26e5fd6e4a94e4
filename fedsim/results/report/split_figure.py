"""The figure of a split: the samples of each client by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.results.analysis.named_runs import CELL, final_runs
from fedsim.results.report.style import GREY, cell_titles, panels, styled
from fedsim.results.study import Study

_COLOR = "#0072B2"
_MAX_BUBBLES = 30  # clients or classes; beyond that a map of shades


def label_counts(study: Study) -> dict[tuple[str, str], np.ndarray]:
    """How many samples of each class each client has, for the first seed of every partition.

    Returns:
        (data set, partition) -> counts (num_clients, num_classes), from the rows of round 0.
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
    return split_figure(named, list(dict.fromkeys(first["class_name"])))


@styled
def split_figure(splits: Mapping[str, np.ndarray], classnames: Sequence[str] = ()) -> Figure:
    """Samples per client and class: bubbles by area for up to 30 of both, shades beyond.

    Args:
        splits: Panel title -> counts (num_clients, num_classes).
        classnames: Written under the columns of panels with as many classes, at most 15.
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
