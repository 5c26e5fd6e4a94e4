import numpy as np
import pytest
from scipy import stats

from fedsim.data.partition.heterogeneity import (
    effective_classes,
    gini,
    partition_statistics,
    total_variation,
)
from fedsim.seeding import numpy_rng

COUNTS = numpy_rng(0, "counts").integers(0, 30, (12, 7)) + np.eye(12, 7, dtype=np.int64)


def test_effective_classes_is_the_exponential_of_scipys_entropy():
    assert np.allclose(effective_classes(COUNTS), np.exp(stats.entropy(COUNTS, axis=1)))


def test_total_variation_by_its_definition_as_a_maximum_over_events():
    law = COUNTS[3] / COUNTS[3].sum()
    overall = COUNTS.sum(0) / COUNTS.sum()
    events = (np.arange(2**7)[:, None] >> np.arange(7)) & 1
    assert total_variation(COUNTS)[3] == pytest.approx(np.abs(events @ (law - overall)).max())


def test_gini_by_its_definition_over_pairs():
    sizes = COUNTS.sum(1)
    pairs = np.abs(sizes[:, None] - sizes).mean()
    assert gini(sizes) == pytest.approx(pairs / (2 * sizes.mean()))


def test_gini_of_nothing_is_zero():
    assert gini(np.zeros(3)) == 0


def test_a_client_without_samples_has_distance_zero():
    assert total_variation(np.array([[0, 0], [1, 1]])).tolist() == [0, 0]


def test_all_figures_by_hand():
    found = partition_statistics(
        np.array([[4, 0], [0, 4], [1, 1], [2, 0]]), num_moved=3, num_unused=5
    )
    assert found.total_variation == pytest.approx(
        np.mean([1 - 7 / 12, 1 - 5 / 12, 7 / 12 - 0.5, 1 - 7 / 12])
    )
    assert found.effective_classes == pytest.approx((1 + 1 + 2 + 1) / 4)
    assert (found.size_min, found.size_median, found.size_max) == (2, 3.0, 4)
    assert found.size_gini == pytest.approx(1 / (2 * 3))  # mean difference 1, mean size 3
    assert (found.num_moved, found.num_unused) == (3, 5)
