"""Points in the ranges of tuned settings: all of them, one step beyond an edge, and in between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Point = dict[str, Any]
"""Dotted settings of one trial."""
Axes = dict[str, list[Any]]
"""Dotted settings -> the values they go through."""

_FINEST = 1.1


def extend(points: list[Point], best: Point) -> Iterator[Point]:
    """The best point with one value further, for every numeric setting at an edge of its range.

    >>> tried = [{"train.lr": lr} for lr in (0.01, 0.1)]
    >>> list(extend(tried, {"train.lr": 0.1}))
    [{'train.lr': 1.0}]
    >>> list(extend([*tried, {"train.lr": 1.0}], {"train.lr": 0.1}))
    []
    """
    for key in best:
        values = _values(points, key)
        if len(values) < 2 or values[0] <= 0:
            continue
        kind = _kind(values)
        if best[key] == values[-1]:
            new = kind(_round(values[-1] * values[-1] / values[-2]))
            if new > values[-1]:
                yield best | {key: new}
        elif best[key] == values[0]:
            new = kind(_round(values[0] * values[0] / values[1]))
            if 0 < new < values[0]:
                yield best | {key: new}


def refine(points: list[Point], best: Point) -> Iterator[Point]:
    """Points between the best value of a numeric setting and its neighbours, widest gap first.

    Values closer than a factor of `_FINEST` are left out, because only chance tells them apart.

    >>> tried = [{"train.lr": lr} for lr in (0.01, 0.1, 1.0)]
    >>> list(itertools.islice(refine(tried, {"train.lr": 0.1}), 3))
    [{'train.lr': 0.316}, {'train.lr': 0.0316}, {'train.lr': 0.178}]
    """
    axes = {key: values for key in best if (values := _values(points, key))}
    grew = True
    while grew:
        grew = False
        for key, values in axes.items():
            at, kind = values.index(best[key]), _kind(values)
            gaps = list(itertools.pairwise(values[max(0, at - 1) : at + 2]))[::-1]
            for a, b in sorted(gaps, key=lambda gap: -_round(gap[1] / gap[0]) if gap[0] > 0 else 0):
                middle = kind(_round((a * b) ** 0.5 if a > 0 else (a + b) / 2))
                if a < middle < b and middle >= a * _FINEST:
                    grew = True
                    yield best | {key: middle}
                    axes[key] = sorted({*axes[key], middle})


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct values: numbers sorted, anything else as given."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return sorted(found) if all(map(_is_number, found)) else found


def product(axes: Axes) -> Iterator[Point]:
    """Every point of a grid."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _values(points: list[Point], key: str) -> list[Any]:
    """The values of a numeric setting, sorted; none of any other setting."""
    values = [point[key] for point in points]
    return sorted(set(values)) if all(map(_is_number, values)) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(values: list[Any]) -> Callable[[float], float]:
    return int if all(isinstance(value, int) for value in values) else float


def _round(value: float) -> float:
    return float(f"{value:.3g}")
