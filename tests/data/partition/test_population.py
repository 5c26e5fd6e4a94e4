"""Clients that draw their samples: the law they follow, and that nothing depends on the rest."""

import numpy as np
import pytest

from fedsim.config import Experiment
from fedsim.data import make_partition
from fedsim.data.from_config import partition_clients
from fedsim.data.partition.population import Population
from fedsim.errors import ConfigError, PartitionError
from tests.helpers import experiment

LABELS = np.arange(3000) % 10
DRAWN = {"scheme": "dirichlet_drawn", "dirichlet_alpha": 0.3, "samples_per_client": 40}


def drawn(num_clients: int = 500, labels: np.ndarray = LABELS, **options) -> Population:
    made = make_partition(labels, num_clients=num_clients, rng=0, **{**DRAWN, **options})
    assert isinstance(made.indices, Population)
    return made.indices


def configured(num_clients: int, holdout_fraction: float) -> Experiment:
    return experiment(
        "unread.npz",
        **{f"partition__{key}": value for key, value in DRAWN.items()},
        partition__num_clients=num_clients,
        evaluation__holdout_fraction=holdout_fraction,
    )


def test_a_client_is_the_same_in_a_population_of_any_size_and_in_any_order():
    few, many = drawn(10), drawn(1_000_000)
    for client in (7, 0, 3):
        assert np.array_equal(few[client], many[client])
    assert np.array_equal(many[999_999], many[999_999])
    assert not np.array_equal(many[999_999], many[999_998])


def test_a_client_holds_a_sample_once_and_only_samples_that_exist():
    for rows in drawn(300, size_sigma=1.0):
        assert len(np.unique(rows)) == len(rows)
        assert (np.diff(rows) > 0).all()
        assert 0 <= rows[0] <= rows[-1] < len(LABELS)


def test_sizes_are_log_normal_with_the_mean_asked_for():
    sizes = np.array([len(rows) for rows in drawn(4000, samples_per_client=100, size_sigma=0.6)])
    assert sizes.mean() == pytest.approx(100, rel=0.04)  # four standard errors
    assert np.log(sizes).std() == pytest.approx(0.6, rel=0.05)
    assert {len(rows) for rows in drawn(50)} == {40}
    assert min(len(rows) for rows in drawn(500, size_sigma=2.0, min_samples=12)) == 12


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_label_laws_have_the_mean_and_variance_of_the_dirichlet_law(alpha: float):
    share = np.array([0.5, 0.3, 0.2])
    labels = np.repeat(np.arange(3), (share * 60_000).astype(int))
    size, num = 50, 6000
    counts = np.stack(
        [
            np.bincount(labels[rows], minlength=3)
            for rows in drawn(num, labels, dirichlet_alpha=alpha, samples_per_client=size)
        ]
    )
    total = 3 * alpha  # concentration of Dir(alpha * C * p)
    assert counts.mean(0) / size == pytest.approx(share, abs=0.025)
    # Dirichlet-multinomial variance
    expected = size * share * (1 - share) * (size + total) / (1 + total)
    assert counts.var(0) == pytest.approx(expected, rel=0.12)


def test_a_class_that_runs_out_is_struck_from_the_law():
    labels = np.array([0] * 5 + [1] * 50 + [3] * 50)  # and nobody has class 2
    for rows in drawn(200, labels, dirichlet_alpha=0.01, samples_per_client=60, num_classes=5):
        counts = np.bincount(labels[rows], minlength=5)
        assert counts.sum() == 60
        assert counts[0] <= 5
        assert counts[2] == counts[4] == 0


def test_the_log_says_that_clients_share_samples_and_whose_statistics_are_shown():
    made = make_partition(LABELS, num_clients=50_000, rng=0, **DRAWN)
    (line,) = made.log
    assert "each of which 667 clients hold on average" in line
    assert "the first 1000 of 50000 clients hold 40000 samples, 3000 of them different" in line
    assert made.label_counts.shape == (1000, 10)
    assert made.num_clients == 50_000
    assert (made.label_counts.sum(1) == 40).all()
    few = make_partition(LABELS, num_clients=5, rng=0, **DRAWN)
    assert "all hold 200 samples" in few.log[0]


def test_what_a_client_holds_out_nobody_trains_on():
    split = partition_clients(LABELS, **configured(100_000, 0.25).for_partition())
    assert not set(split.fit_rows) & set(split.held_rows)
    assert len(split.held_rows) == pytest.approx(0.25 * len(LABELS), abs=10)
    assert np.array_equal(np.sort(np.r_[split.fit_rows, split.held_rows]), np.arange(len(LABELS)))
    clients = [0, 5, 99_999]
    for client in clients:
        fit, held = split.fit[client], split.held[client]
        assert (len(fit), len(held)) == (30, 10)
        assert set(fit) <= set(split.fit_rows)
        assert set(held) <= set(split.held_rows)
    # both follow the client's own law
    laws = [
        [np.bincount(LABELS[part[c]], minlength=10) / len(part[c]) for c in range(300)]
        for part in (split.fit, split.held)
    ]
    near = np.abs(np.array(laws[0]) - np.array(laws[1])).sum(1).mean()
    far = np.abs(np.array(laws[0]) - np.roll(laws[1], 1, axis=0)).sum(1).mean()
    assert near < far / 2
    assert split.num_samples == pytest.approx(100_000 * 30)
    assert list(split.shown) == list(range(1000))


def test_nothing_is_held_out_where_nothing_is_asked_for():
    split = partition_clients(LABELS, **configured(100, 0.0).for_partition())
    assert len(split.held_rows) == 0
    assert [len(split.held[c]) for c in (0, 99)] == [0, 0]
    assert len(split.fit[3]) == 40


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"samples_per_client": 3001}, PartitionError, "is 3001, but the data has 3000"),
        ({"samples_per_client": None}, ConfigError, "needs samples_per_client"),
        ({"samples_per_client": 0}, ConfigError, "is 0: it must be above 0"),
        ({"samples_per_client": 4, "min_samples": 5}, PartitionError, "less than min_samples 5"),
        ({"dirichlet_alpha": None}, ConfigError, "needs dirichlet_alpha"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        drawn(10, **options)


def test_clients_outside_the_population_are_refused():
    with pytest.raises(IndexError, match="client 10 of 10"):
        drawn(10)[10]
