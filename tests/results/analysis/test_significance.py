import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from fedsim.results.analysis.significance import (
    difference_of,
    holm,
    mean_interval,
    non_inferiority_test,
    t_test,
)

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=12)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_intervals_are_those_of_scipy(values: list[float]):
    mean, low, high = mean_interval(np.array(values))
    error = stats.sem(values)
    assert mean == pytest.approx(np.mean(values))
    if error > 1e-9:
        assert (low, high) == pytest.approx(
            stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=10))
def test_p_values_are_those_of_scipy(pairs: list[tuple[float, float]]):
    a, b = np.array(pairs).T
    if np.std(a - b) > 1e-6:
        mean, low, high, p = t_test(a, b, paired=True)
        by_hand = mean_interval(a - b)
        assert (mean, low, high) == pytest.approx(by_hand, rel=1e-9, abs=1e-12)
        of_zero = 2 * stats.t.sf(abs(mean) / stats.sem(a - b), len(a) - 1)
        assert p == pytest.approx(of_zero, abs=1e-12)


def test_without_spread_there_is_no_p_value():
    zeros = np.zeros(3)
    assert t_test(zeros, zeros, paired=True) == (0.0, 0.0, 0.0, 1.0)
    *interval, p = t_test(zeros + 0.1, zeros, paired=True)
    assert interval == pytest.approx([0.1, 0.1, 0.1])
    assert math.isnan(p)
    assert math.isnan(t_test(zeros[:1] + 0.1, zeros[:1], paired=True)[-1])


def test_rounding_is_no_spread():
    base = np.array([0.1, 0.2, 0.3])
    assert np.std((base + 0.1) - base) > 0  # what floating point leaves
    assert math.isnan(t_test(base + 0.1, base, paired=True)[-1])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_hand(p_values: list[float]):
    corrected = holm(np.array([*p_values, np.nan]))
    assert math.isnan(corrected[-1])
    largest, m = 0.0, len(p_values)
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (m - rank) * p_values[place]))
        assert corrected[place] == pytest.approx(largest)


SAMPLES = st.lists(st.floats(0, 1), min_size=2, max_size=10)


def spread(*samples: np.ndarray) -> bool:
    """Whether a t test has something to measure by."""
    return all(np.std(sample) > 1e-6 for sample in samples)


@settings(max_examples=50, deadline=None)
@given(SAMPLES, SAMPLES)
def test_welch_is_that_of_scipy(first: list[float], second: list[float]):
    a, b = np.array(first), np.array(second)
    if spread(a, b):
        expected = stats.ttest_ind(a, b, equal_var=False)
        u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)  # Welch and Satterthwaite by hand
        df = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
        by_hand = 2 * stats.t.sf(abs(a.mean() - b.mean()) / math.sqrt(u + v), df)
        assert t_test(a, b, paired=False)[-1] == pytest.approx(by_hand, abs=1e-12)
        found = difference_of(pd.Series(a), pd.Series(b, index=range(100, 100 + len(b))))
        assert found.test == "unpaired"
        interval = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=10),
       st.floats(0, 0.05))  # fmt: skip
def test_non_inferiority_of_pairs_is_that_of_statsmodels(
    pairs: list[tuple[float, float]], margin: float
):
    a, b = map(np.array, zip(*pairs, strict=True))
    if not spread(a - b):
        return
    found, low, p = non_inferiority_test(pd.Series(a), pd.Series(b), margin)
    expected = DescrStatsW(a - b)
    assert p == pytest.approx(expected.ttest_mean(-margin, "larger")[1], abs=1e-12)
    assert low == pytest.approx(expected.tconfint_mean(0.05, "larger")[0])
    assert found.mean == pytest.approx(np.mean(a - b))


@settings(max_examples=50, deadline=None)
@given(SAMPLES, SAMPLES, st.floats(0, 0.05))
def test_non_inferiority_without_pairs_is_that_of_statsmodels(
    first: list[float], second: list[float], margin: float
):
    a, b = np.array(first), np.array(second)
    if not spread(a, b):
        return
    other = pd.Series(b, index=range(100, 100 + len(b)))
    _, low, p = non_inferiority_test(pd.Series(a), other, margin)
    both = CompareMeans(DescrStatsW(a), DescrStatsW(b))
    expected = both.ttest_ind("larger", usevar="unequal", value=-margin)[1]
    assert p == pytest.approx(expected, abs=1e-12)
    assert low == pytest.approx(both.tconfint_diff(0.05, "larger", usevar="unequal")[0])


def test_the_bound_and_the_p_value_agree():
    rng = np.random.default_rng(0)
    for _ in range(40):
        d = rng.normal(0.002, 0.01, size=8)
        _, low, p = non_inferiority_test(pd.Series(d), pd.Series(np.zeros(8)), 0.005)
        assert (low > -0.005) == (p < 0.05)


def test_pairs_are_used_where_there_are_two_or_only_one_run():
    def test_of(mine: list[int], other: list[int]) -> str | None:
        first, second = pd.Series(0.5, index=mine), pd.Series(0.4, index=other)
        return difference_of(first, second).test

    assert test_of([0, 1, 2], [1, 2, 3]) == "paired"
    assert test_of([0], [0, 1, 2]) == "paired"
    assert test_of([0, 1, 2], [2, 3, 4]) == "unpaired"
    assert test_of([0], [1]) == "unpaired"
    assert test_of([], [1]) is None


def test_only_pairs_enter_a_paired_difference():
    mine = pd.Series([0.5, 0.6, 0.1], index=[0, 1, 2])
    found = difference_of(mine, pd.Series([0.5, 0.4, 0.9], index=[1, 0, 7]))
    assert found.mean == pytest.approx(0.1)
    assert (found.num_pairs, found.num_missing_pairs) == (2, 2)


def test_single_runs_have_a_difference_and_no_interval():
    found = difference_of(pd.Series([0.5], index=[0]), pd.Series([0.4], index=[1]))
    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.low)
    assert math.isnan(found.p_value)


def test_samples_without_spread_have_no_p_value_unless_equal():
    same, more = np.array([0.5, 0.5]), np.array([0.6, 0.6, 0.6])
    assert t_test(same, same, paired=False)[-1] == 1.0
    assert math.isnan(t_test(same, more, paired=False)[-1])
    _, low, p = non_inferiority_test(pd.Series(same), pd.Series(same), 0.1)
    assert math.isnan(low)
    assert math.isnan(p)
