"""The look of the figures: one colour per method everywhere, panels, legends, files.

Colours are those of Okabe and Ito and of Paul Tol's muted set, told apart with any colour vision;
line styles and markers repeat the distinction. Nothing here touches matplotlib's global settings.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.results.analysis.named_runs import CEILINGS, method_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GREY", "MethodStyle", "data_uri", "legend", "method_styles", "panels"]

GREY, DARK = "#6b7280", "#1f2937"
_KNOWN = {
    "fedavg": "#0072B2",
    "cachefl": "#D55E00",
    "feddgm": "#009E73",
    "cachefl_dgm": "#CC79A7",
    "fedavg_head": "#0072B2",
    "fedavg_finetune": "#56B4E9",
    "fedprox": "#661100",
    "scaffold": "#E69F00",
    "promptfl": "#332288",
    "synthetic_only": "#999933",
    "prior_only": "#DDAA33",
    "zero_shot": GREY,
} | dict.fromkeys(CEILINGS, DARK)
_LINE_OF_LEVEL = {"zero_shot": "--"} | dict.fromkeys(CEILINGS, ":")  # levels, not curves
_MORE = ["#882255", "#44AA99", "#AA4499", "#117733", "#CC6677", "#88CCEE", "#663333", "#7777DD"]
_LINES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2))]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn in every figure."""

    color: str
    line: Any
    marker: str


def method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """A style for each method of a study, the same whichever figure asks.

    Args:
        methods: All methods of the study, as shown. Versions of one method, `cachefl (ipc=8)`,
            share its colour family only while colours last: the first has the method's own.
    """
    ordered = sorted(set(methods), key=method_order)
    own = {method: _KNOWN[method] for method in ordered if method in _KNOWN}
    for method in ordered:  # the first version of a method takes its colour
        color = _KNOWN.get(method.split(" ")[0], "")
        if color not in ("", *own.values()):
            own[method] = color
    free = [c for c in dict.fromkeys([*_MORE, *_KNOWN.values()]) if c not in own.values()]
    styles: dict[str, MethodStyle] = {}
    num_curves = num_free = 0
    for method in ordered:
        color = own.get(method, free[num_free % len(free)])
        num_free += method not in own
        if (base := method.split(" ")[0]) in _LINE_OF_LEVEL:
            styles[method] = MethodStyle(color, _LINE_OF_LEVEL[base], "_")
            continue
        line = _LINES[(num_curves // len(_MARKERS)) % len(_LINES)]
        styles[method] = MethodStyle(color, line, _MARKERS[num_curves % len(_MARKERS)])
        num_curves += 1
    return styles


def panels(
    titles: Sequence[str],
    xlabel: str,
    ylabel: str,
    height: float = 3.0,
    share_x: bool = True,
    max_columns: int = 3,
    share_y: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples, one panel per title, at most three in a row.

    Args:
        titles: Panel titles.
        xlabel: Label under the lowest panel of each column.
        ylabel: Label left of each row.
        height: Height of a row in inches.
        share_x: Whether all panels have one x axis.
        max_columns: Panels in a row.
        share_y: Whether all panels have one y axis.
    """
    from matplotlib.figure import Figure

    columns = min(max_columns, max(1, len(titles)))
    rows = max(1, math.ceil(len(titles) / columns))
    width = {1: 6.4, 2: 9.0}.get(columns, 10.8)
    figure = Figure(figsize=(width, height * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False)
    axes = list(grid.flat)
    for place, axis in enumerate(axes[: len(titles)]):
        axis.set_title(titles[place], fontsize=10, color=DARK, loc="left")
        clean(axis)
        if place % columns == 0:
            axis.set_ylabel(ylabel, fontsize=9, color=DARK)
        if place + columns >= len(titles):
            axis.set_xlabel(xlabel, fontsize=9, color=DARK)
            axis.tick_params(labelbottom=True)
    for axis in axes[len(titles) :]:
        axis.remove()
    return figure, axes[: len(titles)]


def clean(axis: Axes) -> None:
    """Fewer lines: no box, a light grid, small grey ticks."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#9ca3af")
    axis.tick_params(labelsize=8, colors=GREY, length=3)
    axis.grid(True, color="#e5e7eb", linewidth=0.7)
    axis.set_axisbelow(True)


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, each method once, in as many columns as fit.

    A long one makes the figure higher, not the panels lower.
    """
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    labels = sorted(entries, key=method_order)
    inch = 0.5 + 0.065 * max(map(len, labels))  # of a 9 point entry with its line
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inch)))
    more = max(0, math.ceil(len(labels) / columns) - 2)  # `panels` leaves room for two lines
    figure.set_figheight(figure.get_figheight() + 0.19 * more)
    figure.legend(
        [entries[label] for label in labels],
        labels,
        loc="outside upper left",
        ncols=columns,
        fontsize=9,
        frameon=False,
        labelcolor=DARK,
        columnspacing=1.4,
        handlelength=2.2,
    )


def data_uri(figure: Figure, format: str = "svg") -> str:
    """The figure as a `data:` address, for a page that needs no other file."""
    import matplotlib as mpl

    sink = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "fedsim"}):
        stamp = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
        figure.savefig(sink, format=format, dpi=144, metadata=stamp)
    kind = "svg+xml" if format == "svg" else format
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"
