"""Means, differences and their tests, on plain numbers: one per seed.

Two methods are compared by the differences of their pairs (runs of one seed on one split). Where
there are no such pairs, both samples are taken as independent, with unequal variances (Welch).
The tests are SciPy's and statsmodels'; this module decides which one applies, and refuses a p value
where the numbers have no spread.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

_NO_SPREAD = 1e-12  # relative to the mean; what floating point leaves of equal numbers


class Difference(NamedTuple):
    """How much higher one method is than another.

    Attributes:
        mean: Of the differences of pairs, or difference of the means.
        low: End of the interval; NaN where there is none.
        high: The other end.
        p_value: Two-sided.
        num_pairs: Pairs there are, whether or not they were used.
        num_missing_pairs: Runs of either method that have no partner.
        test: `paired`, `unpaired` (Welch), or None without numbers to compare.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_pairs: int
    num_missing_pairs: int
    test: Literal["paired", "unpaired"] | None


def difference_of(mine: pd.Series, other: pd.Series, confidence: float = 0.95) -> Difference:
    """Compare two methods by their pairs, or as independent samples if there are too few.

    Two pairs are enough; a single one is used if either method has only one run.

    Args:
        mine: One number per run, indexed by what makes a pair.
        other: The same of the method it is compared with.
        confidence: Coverage of the interval.
    """
    a, b, paired = _samples(mine, other)
    counts = (len(set(mine.index) & set(other.index)), len(set(mine.index) ^ set(other.index)))
    if not len(mine) or not len(other):
        return Difference(math.nan, math.nan, math.nan, math.nan, *counts, None)
    numbers = t_test(a, b, paired, confidence)
    return Difference(*numbers, *counts, "paired" if paired else "unpaired")


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t interval; the interval is NaN for fewer than two values.

    >>> [round(float(x), 3) for x in mean_interval([0.5, 0.6, 0.7])]
    [0.6, 0.352, 0.848]
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if n == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def t_test(
    first: np.ndarray, second: np.ndarray, paired: bool, confidence: float = 0.95
) -> tuple[float, float, float, float]:
    """Difference of two means, its t interval, and its two-sided p value.

    Args:
        first: (n,)
        second: (m,), with m = n for pairs.
        paired: The test of pairs, else Welch's test of independent samples.
        confidence: Coverage of the interval.

    Returns:
        Mean, low, high and p. Low, high and p are NaN for fewer than two numbers on a side. Without
        spread, the interval is the mean alone, and p is 1 for equal means and NaN for others.
    """
    mean = float((first - second).mean() if paired else first.mean() - second.mean())
    spread = _spread(first, second, paired)
    if math.isnan(spread):
        return mean, math.nan, math.nan, math.nan
    if spread == 0:
        return mean, mean, mean, 1.0 if abs(mean) <= _NO_SPREAD else math.nan
    found = _scipy_test(first, second, paired, "two-sided")
    low, high = found.confidence_interval(confidence)
    return mean, float(low), float(high), float(found.pvalue)


def non_inferiority_test(
    mine: pd.Series, other: pd.Series, margin: float, confidence: float = 0.95
) -> tuple[Difference, float, float]:
    """Whether one method is no more than a margin below another: a one-sided t test.

    The null hypothesis is mean(mine) <= mean(other) - margin, so that a small p value shows
    non-inferiority (and, for a margin of 0, superiority). Pairs are used as in `difference_of`.

    Args:
        mine: One number per run, indexed by what makes a pair.
        other: The same of the method it must not fall behind.
        margin: At least 0, in the unit of the numbers.
        confidence: Of the one-sided lower bound.

    Returns:
        The difference, its one-sided lower bound (above -margin exactly where p is below
        1 - `confidence`), and the p value; NaN without enough numbers or spread.
    """
    difference = difference_of(mine, other, confidence)
    a, b, paired = _samples(mine, other)
    if not _spread(a, b, paired) > 0:
        return difference, math.nan, math.nan
    found = _scipy_test(a + margin, b, paired, "greater")
    bound = float(found.confidence_interval(confidence).low) - margin
    return difference, bound, float(found.pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction over all p values that are not NaN."""
    from statsmodels.stats.multitest import multipletests  # takes half a second to import

    p = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected


def _samples(mine: pd.Series, other: pd.Series) -> tuple[np.ndarray, np.ndarray, bool]:
    """The numbers to test, and whether they are pairs (see `difference_of`)."""
    pairs = sorted(set(mine.index) & set(other.index))
    if len(pairs) > 1 or (len(pairs) == 1 and min(len(mine), len(other)) == 1):
        return mine.loc[pairs].to_numpy(dtype=float), other.loc[pairs].to_numpy(dtype=float), True
    return mine.to_numpy(dtype=float), other.to_numpy(dtype=float), False


def _scipy_test(
    first: np.ndarray,
    second: np.ndarray,
    paired: bool,
    alternative: Literal["two-sided", "greater"],
) -> Any:
    if paired:
        return stats.ttest_rel(first, second, alternative=alternative)
    return stats.ttest_ind(first, second, equal_var=False, alternative=alternative)


def _spread(first: np.ndarray, second: np.ndarray, paired: bool) -> float:
    """The spread that a test divides by: 0 if it is rounding, NaN for too few numbers."""
    if min(len(first), len(second)) < 2:
        return math.nan
    if paired:
        spread, size = (first - second).std(ddof=1), (first - second).mean()
    else:
        spread = math.hypot(stats.sem(first), stats.sem(second))
        size = first.mean()
    return 0.0 if spread <= _NO_SPREAD * max(1.0, abs(size)) else float(spread)
