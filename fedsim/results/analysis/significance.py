"""Means, differences and their tests, on plain numbers: one per seed.

Two methods are compared by the differences of their pairs (runs of one seed on one split). Where
there are no such pairs, both samples are taken as independent, with unequal variances (Welch).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = [
    "Difference",
    "difference_of",
    "holm",
    "mean_interval",
    "non_inferiority_test",
    "paired_test",
    "welch_test",
]

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
    """Compare two methods by their pairs, or without, where there are too few.

    Two pairs are enough; a single one is used where either method has only one run.

    Args:
        mine: One number per run, indexed by what makes a pair.
        other: The same of the method it is compared with.
        confidence: Coverage of the interval.
    """
    pairs = sorted(set(mine.index) & set(other.index))
    counts = (len(pairs), len(set(mine.index) ^ set(other.index)))
    if not len(mine) or not len(other):
        return Difference(math.nan, math.nan, math.nan, math.nan, *counts, None)
    if uses_pairs(len(pairs), len(mine), len(other)):
        d = mine.loc[pairs].to_numpy() - other.loc[pairs].to_numpy()
        return Difference(*mean_interval(d, confidence), paired_test(d), *counts, "paired")
    a, b = mine.to_numpy(), other.to_numpy()
    return Difference(*_welch_interval(a, b, confidence), welch_test(a, b), *counts, "unpaired")


def uses_pairs(num_pairs: int, num_mine: int, num_other: int) -> bool:
    """Whether pairs are compared rather than samples."""
    return num_pairs > 1 or (num_pairs == 1 and min(num_mine, num_other) == 1)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t interval; the interval is NaN for fewer than two values.

    >>> [round(float(x), 3) for x in mean_interval([0.5, 0.6, 0.7])]
    [0.6, 0.352, 0.848]
    """
    import numpy as np
    from scipy import stats

    values = np.asarray(values, dtype=float)
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if n == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def paired_test(differences: np.ndarray) -> float:
    """Two-sided p value of the paired t test.

    NaN for fewer than two pairs, and where all differences are one number other than 0: without
    spread the test has nothing to measure by.
    """
    mean, error, df = _of_pairs(differences)
    return _two_sided(mean, error, df)


def welch_test(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p value of Welch's t test of two independent samples.

    NaN for a sample of fewer than two, and where neither has any spread but their means differ.
    """
    mean, error, df = _of_samples(first, second)
    return _two_sided(mean, error, df)


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
    from scipy import stats

    found = difference_of(mine, other, confidence)
    if found.test == "paired":
        pairs = sorted(set(mine.index) & set(other.index))
        mean, error, df = _of_pairs(mine.loc[pairs].to_numpy() - other.loc[pairs].to_numpy())
    else:
        mean, error, df = _of_samples(mine.to_numpy(), other.to_numpy())
    if math.isnan(error) or error == 0:
        return found, math.nan, math.nan
    bound = mean - float(stats.t.ppf(confidence, df)) * error
    return found, bound, float(stats.t.sf((mean + margin) / error, df))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction over all p values that are not NaN."""
    import numpy as np
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected


def _of_pairs(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean, its standard error (0 without spread, NaN for fewer than two), degrees of freedom."""
    import numpy as np

    d = np.asarray(differences, dtype=float)
    if len(d) < 2:
        return (float(d.mean()) if len(d) else math.nan), math.nan, math.nan
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    if spread <= _NO_SPREAD * max(1.0, abs(mean)):
        return (0.0 if abs(mean) <= _NO_SPREAD else mean), 0.0, len(d) - 1
    return mean, spread / math.sqrt(len(d)), len(d) - 1


def _of_samples(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """The same for the difference of two means; degrees of freedom by Welch and Satterthwaite."""
    import numpy as np

    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    mean = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
    if min(len(a), len(b)) < 2:
        return mean, math.nan, math.nan
    u, v = float(a.var(ddof=1) / len(a)), float(b.var(ddof=1) / len(b))
    if math.sqrt(u + v) <= _NO_SPREAD * max(1.0, abs(float(a.mean()))):
        return (0.0 if abs(mean) <= _NO_SPREAD else mean), 0.0, len(a) + len(b) - 2
    df = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return mean, math.sqrt(u + v), df


def _two_sided(mean: float, error: float, df: float) -> float:
    from scipy import stats

    if math.isnan(error):
        return math.nan
    if error == 0:
        return 1.0 if mean == 0 else math.nan
    return float(2 * stats.t.sf(abs(mean) / error, df))


def _welch_interval(
    first: np.ndarray, second: np.ndarray, confidence: float
) -> tuple[float, float, float]:
    from scipy import stats

    mean, error, df = _of_samples(first, second)
    if math.isnan(error):
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    return mean, mean - half, mean + half
