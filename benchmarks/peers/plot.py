"""The table as a picture: a panel per measure, a bar per runner, a dot per repetition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.peers.rows import Row
from benchmarks.peers.runners import RUNNERS
from benchmarks.peers.summary import COLUMNS, MEASURES, medians, values

_COLOURS = {"fedsim": "#0b6e4f", "flower": "#d1a10f", "pfl": "#8a8f98", "loop": "#c9ccd1"}
_ACROSS = 2


def draw(rows: Sequence[Row], note: str, path: Path) -> None:
    """Write the picture; `note` is its last line."""
    shown = [measure for measure in MEASURES if values(measure, rows)]
    down = -(-len(shown) // _ACROSS)
    figure = Figure(figsize=(9, 1.55 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(down, _ACROSS, squeeze=False).flat)
    for panel in panels:
        panel.axis("off")
    for panel, measure in zip(panels, shown, strict=False):
        panel.axis("on")
        found = values(measure, rows)
        middle = medians(found)
        names = [name for name in COLUMNS if name in found]
        for place, name in enumerate(names):
            panel.barh(place, middle[name], color=_COLOURS[name], height=0.7)
            each = found[name]
            panel.plot(each, [place] * len(each), ".", color="black", markersize=3)
            label = f" {middle[name]:,.{measure.digits}f}"
            at = max(middle[name], *each)
            panel.text(at, place, label, va="center", fontsize=8)
        panel.set_yticks(range(len(names)), [RUNNERS[name].title for name in names], fontsize=8)
        panel.invert_yaxis()
        panel.set_title(measure.title, fontsize=9, loc="left")
        panel.tick_params(axis="x", labelsize=7)
        panel.margins(x=0.18)
        panel.set_xlim(left=0)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=7)
    figure.savefig(path, dpi=150)
