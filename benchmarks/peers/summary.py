"""From repetitions to the table: medians, ratios, and whether the goals are met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.peers.rows import Row
from benchmarks.peers.runners import RUNNERS
from benchmarks.peers.specs import SPECS

COLUMNS = ("fedsim", "flower", "pfl", "loop")


def seconds(row: Row) -> float:
    """Seconds per round of one repetition: the median of its rounds but the first."""
    ends = row["ends"]
    return statistics.median(b - a for a, b in pairwise(ends))


def start_up(row: Row) -> float:
    """Seconds from starting the process to the end of round 1, less one usual round.

    It charges to the start whatever a simulator puts off until its first round.
    """
    return row["ends"][0] - seconds(row)


@dataclass(frozen=True)
class Measure:
    """A line of the table.

    Attributes:
        workload: Of `SPECS`.
        title: With its unit.
        value: Of one repetition.
        most: What fedsim may need at most.
        faster: Runner -> how many times what fedsim needs that one must need, at least.
        digits: After the point.
    """

    workload: str
    title: str
    value: Callable[[Row], float]
    most: float | None = None
    faster: Mapping[str, float] = field(default_factory=dict)
    digits: int = 2

    @property
    def goal(self) -> str:
        said = [] if self.most is None else [f"at most {self.most:,g}"]
        for name, factor in self.faster.items():
            title = RUNNERS[name].title
            said.append(f"under {title}'s" if factor == 1 else f"{factor:g}x faster than {title}")
        return ", ".join(said)

    def met(self, medians: Mapping[str, float]) -> bool | None:
        """Whether fedsim reaches the goal; None where something was not measured."""
        if "fedsim" not in medians or not self.faster.keys() <= medians.keys():
            return None
        own = medians["fedsim"]
        within = self.most is None or own <= self.most
        return within and all(medians[n] >= f * own for n, f in self.faster.items())


def _seconds(workload: str, **faster: float) -> Measure:
    title = f"{SPECS[workload].title}, s per round"
    return Measure(workload, title, seconds, faster=faster)


def _memory(workload: str, most: float) -> Measure:
    title = f"memory of all processes, {workload.capitalize()}, MiB"
    return Measure(workload, title, lambda row: row["pss_mb"], most, {"flower": 1}, digits=0)


MEASURES = (
    _seconds("w1", flower=3, pfl=1.6),
    _seconds("w2b", flower=2.2),
    _seconds("w2b_sgd", flower=5),
    _seconds("w2b_sgd5", flower=10),
    Measure(
        "w1_noop",
        "a client that does nothing, ms",
        lambda row: 1e3 * seconds(row) / SPECS["w1_noop"].cohort,
        most=0.7,
    ),
    Measure("w1", "cold start to the first round, W1, s", start_up, 12, {"flower": 1}, digits=1),
    _memory("w1", 1600),
    _memory("w2b", 1800),
)


def values(measure: Measure, rows: Iterable[Row]) -> dict[str, list[float]]:
    """Runner -> the measure of each of its repetitions."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["workload"] == measure.workload:
            found.setdefault(row["runner"], []).append(measure.value(row))
    return found


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in found.items()}


def table(rows: Sequence[Row], foreign: Sequence[str] = ()) -> str:
    """The Markdown table of clean repetitions; `foreign` are runners beside the usual columns."""
    columns = [*COLUMNS, *foreign]
    head = ["", *(RUNNERS[name].title for name in columns), "Flower : fedsim", "goal", "met"]
    lines = [head, ["---", *["---:"] * (len(columns) + 1), "---", "---"]]
    for measure in MEASURES:
        found = values(measure, rows)
        middle = medians(found)
        ratio = ""
        if {"fedsim", "flower"} <= middle.keys():
            ratio = f"{middle['flower'] / middle['fedsim']:.1f}"
        met = {None: "", True: "yes", False: "**no**"}[measure.met(middle)]
        cells = [_cell(found.get(name, ()), measure.digits) for name in columns]
        lines.append([measure.title, *cells, ratio, measure.goal, met])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(each: Sequence[float], digits: int) -> str:
    if not each:
        return ""
    middle, least, most = statistics.median(each), min(each), max(each)
    return f"{middle:,.{digits}f} ({least:,.{digits}f}–{most:,.{digits}f}; {len(each)})"


def worst_parity(rows: Iterable[Row]) -> dict[str, float]:
    """Runner -> its largest distance from the plain loop's weights."""
    worst: dict[str, float] = {}
    for row in rows:
        if row["runner"] != "loop" and "parity" in row:
            worst[row["runner"]] = max(worst.get(row["runner"], 0.0), row["parity"])
    return worst
