"""Distances between sets of features: torchmetrics, SciPy, plain loops, and cases one can tell."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fedsim.models.set_distances import (
    closeness,
    frechet_distance,
    kernel_distance,
    manifold_measures,
    nearest_samples,
)
from fedsim.seeding import numpy_rng

seeds = st.integers(0, 2**32 - 1)


def cloud(count: int, dim: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Samples of a Gaussian whose axes have unequal spread."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, dim)) * np.linspace(0.5, 2, dim) + shift)


class AsTheyAre(nn.Module):
    """Features in the place of a network that makes them."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x


def kid(real: Tensor, synthetic: Tensor, **options: float) -> float:
    return kernel_distance(real, synthetic, numpy_rng(0, "kid"), **options)  # type: ignore[arg-type]


# --- Frechet distance ----------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.3, 4.0])
def test_frechet_distance_is_that_of_torchmetrics_and_scipy(shift: float):
    real, synthetic = cloud(80, seed=1), cloud(50, seed=2, shift=shift) * 1.3
    found = frechet_distance(real, synthetic)
    metric = FrechetInceptionDistance(feature=AsTheyAre(), normalize=False)
    metric.set_dtype(torch.float64)
    for features, is_real in ((real, True), (synthetic, False)):
        metric.update(features, real=is_real)
    assert found == pytest.approx(metric.compute().item(), rel=1e-6)
    s, t = np.cov(real.T.numpy()), np.cov(synthetic.T.numpy())
    gap = float((real.mean(0) - synthetic.mean(0)).square().sum())
    expected = gap + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_gaussians_has_a_closed_form():
    """Diagonal covariances: sum of (difference of means)^2 + (difference of deviations)^2."""
    real = cloud(200_000, dim=3, seed=3)
    found = frechet_distance(real, 2 * real + 1)
    expected = 3 + (np.linspace(0.5, 2, 3) ** 2).sum()
    assert found == pytest.approx(expected, rel=0.02)


@given(seed=seeds, shift=st.floats(-5, 5))
def test_frechet_distance_is_a_symmetric_distance(seed: int, shift: float):
    a, b = cloud(12, seed=seed), cloud(9, seed=seed + 1, shift=shift)
    forth, back = frechet_distance(a, b), frechet_distance(b, a)
    assert forth == pytest.approx(back, rel=1e-6, abs=1e-9)
    assert forth > 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + shift) == pytest.approx(6 * shift**2, rel=1e-6, abs=1e-6)


def test_frechet_distance_needs_more_samples_than_dimensions():
    assert math.isnan(frechet_distance(cloud(6), cloud(50)))
    assert math.isnan(frechet_distance(cloud(50), cloud(6)))
    assert math.isfinite(frechet_distance(cloud(7), cloud(7)))


# --- kernel distance -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
@pytest.mark.parametrize("gamma", [None, 0.7])
def test_kernel_distance_is_that_of_torchmetrics(gamma: float | None):
    real, synthetic = cloud(30, seed=1), cloud(30, seed=2, shift=0.2)
    metric = KernelInceptionDistance(
        feature=AsTheyAre(), subsets=1, subset_size=30, gamma=gamma, normalize=False
    )
    metric.update(real, real=True)
    metric.update(synthetic, real=False)
    expected, _ = metric.compute()
    found = kernel_distance(real, synthetic, numpy_rng(0, "kid"), gamma)
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_kernel_distance_is_its_definition_for_unequal_sizes():
    x, y = cloud(5, seed=1).numpy(), cloud(4, seed=2).numpy()

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 6 + 1) ** 3

    expected = (
        np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
        + np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
        - 2 * np.mean([k(a, b) for a, b in itertools.product(x, y)])
    )
    found = kid(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased():
    """Two sets of one law are 0 apart on average, however small; two laws are not."""
    same, other = [], []
    for n in range(400):
        a, b = cloud(8, seed=2 * n), cloud(5, seed=2 * n + 1)
        same.append(kid(a, b))
        other.append(kid(a, b + 1))
    error = stats.sem(same)
    assert abs(np.mean(same)) < 4 * error
    assert np.mean(other) > 10 * error
    assert min(same) < 0  # no clipping, which would be a bias


def test_large_sets_are_compared_by_subsets():
    real, synthetic = cloud(300, seed=1), cloud(200, seed=2, shift=0.5)
    whole = kid(real, synthetic)
    parts = kid(real, synthetic, subset_size=60, num_subsets=200)
    assert parts == kid(real, synthetic, subset_size=60, num_subsets=200)
    assert parts == pytest.approx(whole, rel=0.15)
    assert parts != whole


def test_kernel_distance_needs_pairs():
    assert math.isnan(kid(cloud(1), cloud(5)))
    assert math.isnan(kid(cloud(5), cloud(1)))


# --- precision, recall, density, coverage --------------------------------------------------------


def plain_manifold(real: np.ndarray, made: np.ndarray, k: int, k2: int) -> tuple[float, ...]:
    """The four measures, ball by ball."""

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]

    def holds(points: np.ndarray, k: int, others: np.ndarray) -> np.ndarray:
        """`(points, others)`: which balls hold which of the others."""
        return np.array(
            [
                [np.linalg.norm(points[i] - o) <= radius(points, i, k) for o in others]
                for i in range(len(points))
            ]
        )

    return (
        holds(real, k, made).any(0).mean(),
        holds(made, k, real).any(0).mean(),
        holds(real, k2, made).sum() / (k2 * len(made)),
        holds(real, k2, made).any(1).mean(),
    )


@given(seed=seeds, shift=st.floats(0, 3), k=st.integers(1, 4), k2=st.integers(1, 5))
def test_manifold_measures_are_their_definitions(seed: int, shift: float, k: int, k2: int):
    real, made = cloud(14, dim=3, seed=seed), cloud(9, dim=3, seed=seed + 1, shift=shift)
    found = manifold_measures(real, made, k, k2)
    assert found == pytest.approx(plain_manifold(real.numpy(), made.numpy(), k, k2))
    assert all(0 <= share <= 1 for share in (found.precision, found.recall, found.coverage))


def test_a_copy_of_the_real_set_is_perfect():
    real = cloud(40)
    found = manifold_measures(real, real.clone())
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx(plain_manifold(real.numpy(), real.numpy(), 3, 5)[2])
    assert frechet_distance(real, real.clone()) == pytest.approx(0, abs=1e-9)


def test_copies_of_copies_lie_within_balls_of_radius_zero():
    unit = nn.functional.normalize(cloud(5, dim=64).float(), dim=1)
    many = unit.repeat(8, 1)
    assert manifold_measures(many, unit).precision == 1
    assert manifold_measures(many, unit).coverage == 1


def test_sets_apart_share_nothing():
    assert manifold_measures(cloud(30), cloud(30, seed=1, shift=50)) == (0, 0, 0, 0)


def test_one_mode_is_precise_but_covers_little():
    """Ten clusters, of which the synthetic set shows one."""
    centres = 100 * torch.arange(10.0)[:, None].repeat(1, 6)
    real = cloud(200, seed=1) + centres.repeat_interleave(20, 0)
    found = manifold_measures(real, cloud(60, seed=2))
    assert found.precision > 0.7
    assert found.recall == pytest.approx(0.1, abs=0.02)
    assert found.coverage <= 0.1


def test_manifolds_need_neighbours():
    few, many = cloud(3), cloud(20, seed=1)
    synthetic = manifold_measures(many, few)
    assert math.isnan(synthetic.recall)
    assert not math.isnan(synthetic.precision + synthetic.density + synthetic.coverage)
    real = manifold_measures(few, many)
    assert math.isnan(real.precision)
    assert math.isnan(real.density)
    assert math.isnan(real.coverage)
    assert not math.isnan(real.recall)
    nothing = manifold_measures(many, torch.empty(0, 6))
    assert all(math.isnan(value) for value in nothing)


# --- copying -------------------------------------------------------------------------------------


def test_nearest_similarity_is_the_largest_cosine():
    a, b = (nn.functional.normalize(cloud(n, seed=n), dim=1) for n in (7, 5000))
    found = nearest_samples(a, b)[0]
    torch.testing.assert_close(found, (a @ b.T).max(1).values)
    torch.testing.assert_close(nearest_samples(b[:3], b)[0], torch.ones(3).double())
    assert nearest_samples(a, b)[1].tolist() == (a @ b.T).argmax(1).tolist()
    assert nearest_samples(b[[4999, 7]], b)[1].tolist() == [4999, 7]


@given(
    made=st.lists(st.integers(0, 6), min_size=1, max_size=20),
    held=st.lists(st.integers(0, 6), min_size=1, max_size=20),
)
def test_closeness_is_mann_whitneys_statistic(made: list[int], held: list[int]):
    a, b = np.array(made, dtype=float), np.array(held, dtype=float)
    statistic = stats.mannwhitneyu(a, b, method="asymptotic").statistic
    assert closeness(a, b) == pytest.approx(statistic / (len(a) * len(b)))
    assert closeness(a, b) + closeness(b, a) == pytest.approx(1)


def test_copies_are_closest_and_noise_is_far():
    def unit(x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)

    train, fresh = unit(cloud(200, seed=1, shift=3)), unit(cloud(100, seed=2, shift=3))
    near = nearest_samples(fresh, train)[0].numpy()

    def score(x: Tensor) -> float:
        return closeness(nearest_samples(unit(x), train)[0].numpy(), near)

    assert score(train[:50]) == 1
    assert score(cloud(100, seed=3, shift=3)) == pytest.approx(0.5, abs=0.12)
    assert score(cloud(50, seed=4, shift=-3)) == 0
    assert math.isnan(closeness(np.array([]), near))
    assert math.isnan(closeness(near, np.array([])))
