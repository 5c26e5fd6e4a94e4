import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.splits import carve, holdout, proportional_quota, stable_order, take_per_group
from fedsim.errors import ConfigError
from fedsim.seeding import derive, numpy_rng


def test_stable_order_never_changes():
    order = stable_order(derive(0, "golden"), 1000)
    digest = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("461176a553ffb2575356622a67ea04c9"), digest


def test_stable_order_is_the_published_splitmix64():
    def splitmix64(seed: int, index: int) -> int:
        mask = 2**64 - 1
        z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert splitmix64(1234567, 0) == 6457827717110365317  # first output of the reference code
    keys = [splitmix64(77, i) for i in range(50)]
    assert stable_order(77, 50).tolist() == sorted(range(50), key=keys.__getitem__)


@given(st.integers(0, 2**63 - 1), st.integers(0, 200))
def test_stable_order_is_a_permutation(seed: int, count: int):
    assert sorted(stable_order(seed, count)) == list(range(count))


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63 - 1),
)
def test_carve_takes_its_share_of_every_group_and_never_the_last_row(groups, fraction, seed):
    array = np.array(groups)
    mask = carve(array, fraction, seed)
    for group in np.unique(array):
        size, taken = int((array == group).sum()), int(mask[array == group].sum())
        assert taken == min(max(int(np.floor(size * fraction + 0.5)), 1), size - 1)


def test_take_per_group_gives_all_of_a_small_group():
    groups = np.array([0, 1, 1, 1, 2])
    chosen = take_per_group(groups, np.array([2, 2, 0]), seed=3)
    assert np.bincount(groups[chosen], minlength=3).tolist() == [1, 2, 0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.data())
def test_proportional_quota_sums_up_and_stays_within_sizes(sizes, data):
    array = np.array(sizes)
    present = int((array > 0).sum())
    if not present:
        return
    total = data.draw(st.integers(present, int(array.sum())))
    quota = proportional_quota(array, total)
    assert quota.sum() == total
    assert (quota <= array).all()
    assert (quota[array > 0] >= 1).all()


class TestHoldout:
    @settings(max_examples=100)
    @given(
        st.lists(st.integers(0, 4), min_size=1, max_size=60),
        st.floats(0, 0.99),
        st.integers(1, 10),
        st.integers(0, 1000),
    )
    def test_parts_are_disjoint_complete_and_of_the_right_size(
        self, labels, fraction, min_samples, seed
    ):
        rows = np.arange(len(labels)) * 3 + 1
        every = np.zeros(rows[-1] + 1, dtype=np.int64)
        every[rows] = labels
        rng = numpy_rng(seed, "holdout", 0)
        fit, held = holdout(rows, every, fraction, rng, min_samples=min_samples)
        assert np.array_equal(np.sort(np.concatenate([fit, held])), rows)
        assert len(fit) >= 1
        expected = min(int(np.floor(fraction * len(rows) + 0.5)), len(rows) - 1)
        assert len(held) == (0 if len(rows) < min_samples else expected)
        for label in range(5):  # shares of classes are kept to within one sample
            size, out = (every[rows] == label).sum(), (every[held] == label).sum()
            assert abs(out - size * len(held) / len(rows)) < 1

    def test_every_sample_is_equally_likely_to_be_held_out(self):
        labels = np.repeat([0, 1, 2], [10, 7, 3])
        hits = np.zeros(20)
        for seed in range(2000):
            hits[holdout(np.arange(20), labels, 0.25, numpy_rng(seed, "h"))[1]] += 1
        assert np.allclose(hits / 2000, 0.25, atol=0.05)

    def test_the_same_stream_gives_the_same_rows(self):
        labels = np.arange(50) % 5
        first = holdout(np.arange(50), labels, 0.2, numpy_rng(1, "holdout", 4))[1]
        again = holdout(np.arange(50), labels, 0.2, numpy_rng(1, "holdout", 4))[1]
        other = holdout(np.arange(50), labels, 0.2, numpy_rng(1, "holdout", 5))[1]
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
    def test_a_fraction_outside_its_range_is_refused(self, fraction: float):
        with pytest.raises(ConfigError, match=r"client_holdout is .* \[0, 1\)"):
            holdout(np.arange(9), np.zeros(9, int), fraction, numpy_rng(0, "h"))
