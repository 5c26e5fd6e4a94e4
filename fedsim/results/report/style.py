"""The look of the figures: one colour per method everywhere, panels, legends, files.

Line styles and markers repeat the distinction that colours make (`fedsim.methods.shown`). The style
sheet `fedsim.mplstyle` holds sizes, greys and lines of all figures. `styled` applies it while a
figure is drawn, so matplotlib's global settings stay as they are.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import cycle, product
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.methods.shown import COLORS
from fedsim.results.analysis.named_runs import CELL, curves, method_order
from fedsim.results.tables.reader import Tables

styled = mpl.rc_context(
    mpl.rc_params_from_file(
        str(files("fedsim.results.report") / "fedsim.mplstyle"), use_default_template=False
    )
)
"""Decorator of functions that draw a figure."""

GREY, DARK = "#6b7280", "#1f2937"
_MORE = ["#882255", "#44AA99", "#AA4499", "#117733", "#CC6677", "#88CCEE", "#663333", "#7777DD"]
_LINES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2))]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn in every figure."""

    color: str
    line: Any
    marker: str


def method_styles(
    methods: Iterable[str], zero_shot: Collection[str] = (), ceilings: Collection[str] = ()
) -> dict[str, MethodStyle]:
    """A style for each method of a study, the same in every figure, in the order of tables.

    Args:
        methods: All methods of the study, as shown. Of several versions of a method, such as
            `cachefl (ipc=8)`, the first has the method's colour.
        zero_shot: Methods that are drawn as the level before training.
        ceilings: Methods that are drawn as the level of pooled data.
    """
    ordered = sorted(set(methods), key=lambda m: (m in ceilings, method_order(m)))
    own = {m: DARK if m in ceilings else GREY for m in ordered if m in (*zero_shot, *ceilings)}
    own |= {method: COLORS[method] for method in ordered if method in COLORS}
    for method in ordered:  # the first version of a method takes its colour
        color = COLORS.get(method.split(" ")[0], "")
        if method not in own and color not in ("", *own.values()):
            own[method] = color
    known = [*_MORE, *COLORS.values(), GREY, DARK]
    free = [c for c in dict.fromkeys(known) if c not in own.values()]
    colors, looks = cycle(free), cycle(product(_LINES, _MARKERS))
    levels = dict.fromkeys(zero_shot, ("--", "_")) | dict.fromkeys(ceilings, (":", "_"))
    return {
        method: MethodStyle(own.get(method) or next(colors), *levels.get(method) or next(looks))
        for method in ordered
    }


def study_styles(study: Tables) -> dict[str, MethodStyle]:
    """The styles of all methods of a study that have rounds."""
    runs = curves(study)
    facts = (set(runs.loc[runs[fact], "method"]) for fact in ("zero_shot", "pooled"))
    return method_styles(runs["method"], *facts)


def cell_titles(cells: Iterable[tuple[str, str]]) -> list[str]:
    """Titles of panels: the partition, after its data set where there are several."""
    cells = list(cells)
    several = len({dataset for dataset, _ in cells}) > 1
    return [f"{dataset}, {part}" if several else part for dataset, part in cells]


def cell_panels(
    table: pd.DataFrame, empty: str, xlabel: str, ylabel: str, height: float = 3.0
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """`panels` of the data sets and partitions of a table, and the rows of each.

    An empty table has one panel, whose title is `empty`, and no rows.
    """
    cells = dict(tuple(table.groupby(CELL, sort=False)))
    figure, axes = panels(cell_titles(cells) or [empty], xlabel, ylabel, height)
    return figure, list(zip(axes, cells.values(), strict=False))


@styled
def panels(
    titles: Sequence[str],
    xlabel: str,
    ylabel: str,
    height: float = 3.0,
    share_x: bool = True,
    share_y: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples, one panel per title, at most three in a row.

    The lowest panels have the label of the x axis, the leftmost that of the y axis. A row is
    `height` inches high.
    """
    columns = min(3, max(1, len(titles)))
    rows = max(1, math.ceil(len(titles) / columns))
    width = {1: 6.4, 2: 9.0}.get(columns, 10.8)
    figure = Figure(figsize=(width, height * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False)
    axes = list(grid.flat)
    for place, axis in enumerate(axes[: len(titles)]):
        axis.set_title(titles[place])
        for side in (axis.xaxis, axis.yaxis):
            side.get_major_ticks(1)  # ticks that are made later copy the look of the first
        if place % columns == 0:
            axis.set_ylabel(ylabel)
        if place + columns >= len(titles):
            axis.set_xlabel(xlabel)
            axis.tick_params(labelbottom=True)
    for axis in axes[len(titles) :]:
        axis.remove()
    return figure, axes[: len(titles)]


@styled
def legend(figure: Figure, order: Iterable[str] = ()) -> None:
    """One legend above all panels, each method once, in as many columns as fit.

    A long legend makes the figure higher, not the panels lower. The labels in `order` come first.
    """
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    labels = [label for label in dict.fromkeys([*order, *entries]) if label in entries]
    inch = 0.5 + 0.065 * max(map(len, labels))  # of a 9 point entry with its line
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inch)))
    more = max(0, math.ceil(len(labels) / columns) - 2)  # `panels` leaves room for two lines
    figure.set_figheight(figure.get_figheight() + 0.19 * more)
    handles = [entries[label] for label in labels]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


@styled
def data_uri(figure: Figure) -> str:
    """The figure as a `data:` address, for a page that needs no other file."""
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", dpi=144, metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(sink.getvalue()).decode()}"
