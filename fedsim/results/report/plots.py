"""Figures of accuracy: over rounds, over bytes, against heterogeneity, by class.

Each function takes a study, which may still be running, and returns a matplotlib figure; save it
with `figure.savefig`. Lines are means over seeds. Bands are 95 % t intervals for three seeds or
more, and go from the lowest to the highest run for two. Of a method with finished runs, only these
are drawn; of others, the rounds that all runs have reached.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from pandas.api.typing import SeriesGroupBy
from scipy import stats

from fedsim.results.analysis.named_runs import curves, final_scores, last_rounds
from fedsim.results.report.numbers import human_bytes
from fedsim.results.report.style import (
    GREY,
    MethodStyle,
    cell_panels,
    legend,
    panels,
    study_styles,
    styled,
)
from fedsim.results.study import Study


def mean_curve(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and band by round over the `curves` of one method in one cell.

    Returns:
        `round, bytes, mean, low, high, num_runs`; `low` and `high` are NaN without a band.
    """
    runs = runs[runs["accuracy"].notna()]
    if (runs["status"] == "finished").any():
        runs = runs[runs["status"] == "finished"]
    else:
        runs = runs[runs["round"] <= runs.groupby("run_id")["round"].max().min()]
    rounds = runs.groupby("round")
    bands = _bands(rounds["accuracy"])
    bands.insert(0, "bytes", rounds["bytes"].mean())
    return bands.reset_index()


def _bands(values: SeriesGroupBy) -> pd.DataFrame:
    """`mean, low, high, num_runs` of each group."""
    table = values.agg(["mean", "std", "min", "max", "count"])
    mean, n = table["mean"], table["count"]
    half = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * table["std"] / np.sqrt(n)
    low = (mean - half).where(n > 2, table["min"]).where(n > 1)
    high = (mean + half).where(n > 2, table["max"]).where(n > 1)
    return pd.DataFrame({"mean": mean, "low": low, "high": high, "num_runs": n})


@styled
def accuracy_over_rounds(study: Study) -> Figure:
    """Test accuracy after each round, one panel per data set and partition."""
    figure = _curve_figure(study, "round", "communication round")
    for axis in figure.axes:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return figure


@styled
def accuracy_against_bytes(study: Study) -> Figure:
    """Test accuracy against everything sent so far, set-up included, on a logarithmic axis."""
    figure = _curve_figure(study, "bytes", "sent and received so far")
    for axis in figure.axes:
        axis.set_xscale("log", base=2)
        ticks = byte_ticks(*axis.get_xlim())
        _label(axis, list(ticks.values()), list(ticks))
    return figure


@styled
def accuracy_against_alpha(study: Study) -> Figure:
    """Final accuracy against the Dirichlet alpha, one panel per data set and scheme.

    IID stands at the right. Partitions without alpha have no place on this axis and are left out.
    """
    groups = alpha_groups(study)
    styles = study_styles(study)
    figure, axes = panels(
        list(groups) or ["no finished run"],
        "Dirichlet alpha (smaller: more skewed)",
        "test accuracy, %",
        share_x=False,
    )
    for axis, here in zip(axes, groups.values(), strict=False):
        alphas = sorted(here["dirichlet_alpha"].dropna().unique())
        span = math.log10(alphas[-1] / alphas[0]) if len(alphas) > 1 else 1.0
        at_iid = alphas[-1] * 10 ** (0.22 * span)
        width = math.log10(at_iid / alphas[0])
        methods = list(dict.fromkeys(here["method"]))
        for place, method in enumerate(methods):
            shift = 10 ** (0.05 * width * ((place + 0.5) / len(methods) - 0.5))
            _alpha_line(axis, here[here["method"] == method], styles[method], at_iid, shift)
        axis.set_xscale("log")
        has_iid = here["dirichlet_alpha"].isna().any()
        ticks = [*alphas, at_iid] if has_iid else alphas
        names = [f"{alpha:g}" for alpha in alphas] + (["IID"] if has_iid else [])
        _label(axis, ticks, names)
        right = at_iid if has_iid else alphas[-1]
        axis.set_xlim(alphas[0] / 10 ** (0.08 * width), right * 10 ** (0.08 * width))
        if has_iid:
            axis.axvline(math.sqrt(at_iid * alphas[-1]), color="#9ca3af", linewidth=0.8, ls=":")
    legend(figure, styles)
    return figure


def alpha_groups(study: Study) -> dict[str, pd.DataFrame]:
    """Last rounds of finished runs on Dirichlet and IID partitions, by the titles of their panels.

    A title names the data set, the scheme and what else is set.
    """
    last = last_rounds(study)
    last = last[(last["status"] == "finished") & last["accuracy"].notna()]
    last = last.assign(setup=[name.partition(", ")[2] for name in last["partition"]])
    iid = last[last["partition_scheme"] == "iid"]
    found: dict[str, pd.DataFrame] = {}
    for (dataset, scheme, setup), group in last[last["dirichlet_alpha"].notna()].groupby(
        ["dataset", "partition_scheme", "setup"], sort=False
    ):
        same = iid[(iid["dataset"] == dataset) & (iid["setup"] == setup)]
        title = ", ".join(part for part in (dataset, scheme, setup) if part)
        found[title] = pd.concat([group, same], ignore_index=True)
    return found


@styled
def class_accuracy(study: Study, dataset: str | None = None, max_classes: int = 20) -> Figure:
    """Accuracy of each class of a data set in the last round, one panel per partition.

    By default of the first data set. Of more than `max_classes`, it shows those on which the
    methods differ most.
    """
    final = final_scores(study, scope="class", metric="accuracy", split="test")
    final = final[final["dataset"] == (dataset or next(iter(final["dataset"]), None))]
    styles = study_styles(study)
    wide = final.pivot_table(index="class_name", columns="method", values="value", sort=False)
    spread = wide.max(axis=1) - wide.min(axis=1)
    names = list(spread.nlargest(max_classes).index)
    names.sort(key=lambda name: wide.loc[name].mean())
    height = 0.9 + 0.21 * max(len(names), 4)
    figure, cells = cell_panels(final, "no finished run", "accuracy, %", "", height)
    for axis, here in cells:
        for method, group in here.groupby("method", sort=False):
            means = group.groupby("class_name")["value"].mean()
            known = [place for place, name in enumerate(names) if name in means.index]
            style = styles[method]
            look: dict[str, Any] = {"marker": style.marker, "markersize": 6, "zorder": 3}
            if style.marker == "_":  # a level: thin and on top
                look |= {"marker": "|", "markersize": 10, "zorder": 4}
            values = [100 * means[names[place]] for place in known]
            axis.plot(values, known, ls="none", color=style.color, alpha=0.9, label=method, **look)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.6, max(len(names), 1) - 0.4)
    legend(figure, styles)
    return figure


def _curve_figure(study: Study, x: str, xlabel: str) -> Figure:
    styles = study_styles(study)
    figure, cells = cell_panels(curves(study), "no round yet", xlabel, "test accuracy, %")
    for axis, here in cells:
        for method, group in here.groupby("method", sort=False):
            curve = mean_curve(group)
            if curve.empty:
                continue
            if group["level"].iloc[0]:
                style = styles[method]
                axis.axhline(100 * curve["mean"].iloc[-1], color=style.color, linewidth=1.2,
                             linestyle=style.line, label=method)  # fmt: skip
            else:
                shown = curve[curve["bytes"] > 0] if x == "bytes" else curve
                _draw(axis, shown, x, method, styles[method])
        if not axis.lines:
            axis.text(0.5, 0.5, "no round yet", transform=axis.transAxes, ha="center", color=GREY)
    legend(figure, styles)
    return figure


def _draw(axis: Axes, curve: pd.DataFrame, x: str, method: str, style: MethodStyle) -> None:
    every = max(1, math.ceil(len(curve) / 10))
    axis.plot(curve[x], 100 * curve["mean"], color=style.color, linestyle=style.line, linewidth=1.7,
              marker=style.marker, markevery=every, markersize=4, label=method)  # fmt: skip
    band = curve[curve["low"].notna()]
    axis.fill_between(band[x], 100 * band["low"], 100 * band["high"], color=style.color, alpha=0.15,
                      linewidth=0)  # fmt: skip


def _alpha_line(
    axis: Axes, runs: pd.DataFrame, style: MethodStyle, at_iid: float, shift: float
) -> None:
    runs = runs.assign(x=shift * runs["dirichlet_alpha"].fillna(at_iid))
    label: str | None = runs["method"].iloc[0]
    for is_iid, part in runs.groupby(runs["dirichlet_alpha"].isna()):
        by_seed = part.groupby(["x", "seed"])["accuracy"].mean()
        bands = 100 * _bands(by_seed.groupby("x"))
        errors = np.array([bands["mean"] - bands["low"], bands["high"] - bands["mean"]])
        axis.errorbar(bands.index, bands["mean"], np.nan_to_num(errors), label=label,
                      linestyle="none" if is_iid else style.line, color=style.color, linewidth=1.5,
                      marker=style.marker, markersize=4.5, elinewidth=1, capsize=2)  # fmt: skip
        label = None  # once in the legend


def _label(axis: Axes, places: list[float], names: list[str]) -> None:
    """Ticks of the x axis at these places alone."""
    axis.xaxis.set_major_locator(FixedLocator(places))
    axis.xaxis.set_major_formatter(FixedFormatter(names))
    axis.xaxis.set_minor_locator(NullLocator())


def byte_ticks(low: float, high: float) -> dict[str, float]:
    """Two to five places on an axis of bytes and how they are labelled.

    >>> byte_ticks(100_000, 3_000_000)
    {'128 KiB': 131072.0, '512 KiB': 524288.0, '2 MiB': 2097152.0}
    >>> list(byte_ticks(2_800_000, 2_900_000))
    ['2.7 MiB', '2.75 MiB']
    """
    low, high = max(low, 1.0), max(high, 2.0)
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    if last > first:
        step = math.ceil((last - first + 1) / 4)
        places = [float(2**power) for power in range(first, last + 1, step)]
        return {human_bytes(place).replace(".0 ", " "): place for place in places}
    power = min(int(math.log2(low) // 10), 4)
    unit = 1024.0**power
    name = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    nice = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low / unit, high / unit)
    return {f"{p:g} {name}": float(p * unit) for p in nice if low <= p * unit <= high}
