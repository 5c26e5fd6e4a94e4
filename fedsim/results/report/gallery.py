"""Figures of synthetic sets: their first images, class by class, and those nearest to real ones.

Sets beside each other come from a run's rounds, or from several methods. All bars go from 0 to 1,
so that a weak class is seen beside its images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fedsim.results.report.style import DARK, GREY
from fedsim.results.study import NearestReal, SyntheticImages

BARS = {
    "clip_agreement": "CLIP\nagreement",
    "precision": "precision",
    "coverage": "coverage",
    "memorisation": "memorisation",
    "cache_accuracy": "untrained\ncache",
}
"""The measures beside the images; all lie between 0 and 1."""

_COLOR, _WEAK = "#0072B2", "#D55E00"
_INCH = 0.68
_NEUTRAL = {"memorisation": 0.5}
_ALARM = {"memorisation": 0.75}


def drawn_bars(quality: pd.DataFrame) -> list[str]:
    """The entries of `BARS` that were measured; none without an encoder."""
    return [bar for bar in BARS if quality[bar].notna().any()]


def synthetic_gallery(
    images: SyntheticImages,
    quality: pd.DataFrame | None = None,
    per_class: int = 10,
    max_classes: int = 20,
    side: int = 96,
) -> Figure:
    """The first images of each class of a synthetic set, one row per class, and their quality.

    `quality` is that of `fedsim.results.report.synthetic_sets.class_quality`. Larger images are
    shrunk to `side` pixels.
    """
    classes = [int(label) for label in np.unique(images.labels)][:max_classes]
    names = [_name(images.classnames, label) for label in classes]
    canvas, h, gap = _canvas(images, classes, per_class, side)
    high, wide = canvas.shape[:2]
    bars = [] if quality is None else drawn_bars(quality)
    scale = _INCH / (h + gap)
    left, bar, between = 0.3 + 0.075 * max(map(len, names), default=4), 0.95, 0.24
    top = 0.5 if bars else 0.1  # their titles
    size = (left + wide * scale + len(bars) * (bar + between) + 0.1, top + high * scale + 0.15)
    figure = Figure(figsize=size)
    axis = _picture(figure, canvas, left, 0.15, scale)
    middles = [place * (h + gap) + h / 2 for place in range(len(classes))]
    axis.set_yticks(middles, names)
    for place, measure in enumerate(bars):
        assert quality is not None
        x = left + wide * scale + place * (bar + between) + between
        beside = _axes(figure, x, 0.15, bar, high * scale)
        beside.set_ylim(axis.get_ylim())
        values = quality[measure].reindex(names).to_numpy(dtype=float)
        _bars(beside, middles, values, 0.24 * (h + gap), measure)
    return figure


def sets_beside(
    sets: Mapping[str, SyntheticImages], per_class: int = 3, max_classes: int = 20, side: int = 64
) -> Figure:
    """The first images of each class of several sets: one row per class, a block per set.

    The sets, by their titles, are all of the same data, so that a class has the same row in all.
    Larger images are shrunk to `side` pixels.
    """
    labels = sorted({int(label) for one in sets.values() for label in np.unique(one.labels)})
    classes = labels[:max_classes]
    names = [_name(next(iter(sets.values())).classnames, label) for label in classes]
    drawn = [_canvas(one, classes, per_class, side) for one in sets.values()]
    h, gap = drawn[0][1:]
    scale, apart, top = 0.5 * _INCH / h, 0.12, 0.3
    left = 0.3 + 0.075 * max(map(len, names), default=4)
    high = drawn[0][0].shape[0] * scale
    widths = [canvas.shape[1] * scale for canvas, _, _ in drawn]
    figure = Figure(figsize=(left + sum(widths) + apart * len(widths), top + high + 0.1))
    x = left
    for (canvas, _, _), title, width in zip(drawn, sets, widths, strict=True):
        axis = _picture(figure, canvas, x, 0.1, scale)
        axis.set_title(title, fontsize=8.5, color=DARK, pad=4)
        if x == left:
            axis.set_yticks([place * (h + gap) + h / 2 for place in range(len(classes))], names)
        x += width + apart
    return figure


def nearest_pairs(images: SyntheticImages, nearest: NearestReal, side: int = 96) -> Figure:
    """The synthetic images most like a training image, above it, with their cosines.

    `nearest` is of the set `images` and has pixels; images are resized to `side` pixels.
    """
    assert nearest.closest is not None
    assert nearest.pixels is not None
    gap, pairs = max(1, side // 16), len(nearest.closest)
    rows = [[images.images[index] for index in nearest.closest], list(nearest.pixels)]
    canvas = _tiles(rows, side, side, gap)
    inch = 1.3 * _INCH / side
    left, top, high, wide = 0.9, 0.35, canvas.shape[0] * inch, canvas.shape[1] * inch
    figure = Figure(figsize=(left + wide + 0.1, top + high + 0.1))
    axis = _picture(figure, canvas, left, 0.1, inch)
    axis.set_yticks([side / 2, 1.5 * side + gap], ["synthetic", "nearest\ntraining"])
    cosines = [f"{cosine:.2f}" for cosine in nearest.similarity[nearest.closest]]
    axis.set_xticks([place * (side + gap) + side / 2 for place in range(pairs)], cosines)
    axis.xaxis.tick_top()
    return figure


def _picture(figure: Figure, canvas: np.ndarray, left: float, bottom: float, inch: float) -> Axes:
    """An image in axes of its own, at `inch` per pixel."""
    high, wide = canvas.shape[:2]
    axis = _axes(figure, left, bottom, wide * inch, high * inch)
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    return axis


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, without frame and ticks."""
    wide, high = figure.get_size_inches()
    axis = figure.add_axes((left / wide, bottom / high, width / wide, height / high))
    axis.tick_params(labelsize=9, labelcolor=DARK, length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks([])
    axis.set_yticks([])
    return axis


def _bars(axis: Axes, middles: list[float], values: np.ndarray, thick: float, measure: str) -> None:
    """One measure of all classes as bars with their values; an alarming one stands out."""
    axis.set_xlim(0, 1)
    axis.set_title(BARS[measure], fontsize=8.5, color=DARK, loc="left", pad=5)
    axis.barh(middles, 1, height=thick, color="#f1f3f5", linewidth=0)
    for middle, value in zip(middles, values, strict=True):
        missing = value != value
        alarm = not missing and value > _ALARM.get(measure, 1.0)
        if not missing:
            axis.barh(middle, value, height=thick, color=_WEAK if alarm else _COLOR, linewidth=0)
        text = "–" if missing else f"{value:.2f}"
        axis.text(0, middle - thick, text, fontsize=7.5, color=GREY, va="bottom", ha="left")
    if measure in _NEUTRAL:
        axis.axvline(_NEUTRAL[measure], color=DARK, linewidth=0.8, linestyle=(0, (2, 2)))


def _canvas(
    images: SyntheticImages, classes: list[int], per_class: int, side: int
) -> tuple[np.ndarray, int, int]:
    """All images of the figure as one, the height of each, and the gap between them, in px."""
    height, width = images.images.shape[1:3]
    scale = min(1.0, side / max(height, width))
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    rows = [images.images[images.labels == label][:per_class] for label in classes]
    gap = max(1, h // 16)
    return _tiles(rows, h, w, gap), h, gap


def _tiles(rows: Sequence[Sequence[np.ndarray]], h: int, w: int, gap: int) -> np.ndarray:
    """Rows of images as one image; each is resized to h x w and set apart by a white gap."""
    columns = max(map(len, rows), default=1)
    canvas = np.full(((h + gap) * max(len(rows), 1), (w + gap) * columns, 3), 255, np.uint8)
    for place, row in enumerate(rows):
        for column, image in enumerate(row):
            if image.shape[:2] != (h, w):
                resized = Image.fromarray(image).resize((w, h), Image.Resampling.LANCZOS)
                image = np.asarray(resized)
            top, left = place * (h + gap), column * (w + gap)
            canvas[top : top + h, left : left + w] = image
    return canvas[:-gap, :-gap]


def _name(classnames: list[str], label: int) -> str:
    return classnames[label] if 0 <= label < len(classnames) else str(label)
