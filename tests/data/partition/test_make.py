"""Each scheme against the law it states, and what cannot be made."""

import numpy as np
import pytest

from fedsim.config.families import SCHEMES, load_module
from fedsim.data import make_partition
from fedsim.data.partition.sampling import log_dirichlet, softmax, split_counts
from fedsim.errors import ConfigError, FedsimError, PartitionError
from fedsim.seeding import numpy_rng


def balanced(num_classes: int, per_class: int) -> np.ndarray:
    return np.repeat(np.arange(num_classes), per_class)


class TestDraws:
    @pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 20.0])
    def test_log_dirichlet_has_the_moments_of_dirichlet(self, alpha: float):
        draws = softmax(log_dirichlet(numpy_rng(0, "draws"), np.full(5, alpha), 40_000))
        assert np.allclose(draws.mean(0), 0.2, atol=0.01)
        assert np.allclose(draws.var(0), 0.2 * 0.8 / (5 * alpha + 1), rtol=0.05)

    def test_log_dirichlet_follows_unequal_concentrations(self):
        alpha = np.array([0.1, 1.0, 4.0])
        draws = softmax(log_dirichlet(numpy_rng(0, "draws"), alpha, 40_000))
        assert np.allclose(draws.mean(0), alpha / alpha.sum(), atol=0.01)

    def test_split_counts_rounds_without_bias(self):
        shares, rng = np.array([0.03, 0.17, 0.3, 0.5]), numpy_rng(0, "draws")
        parts = np.stack([split_counts(rng, 10, shares) for _ in range(4000)])
        assert (parts.sum(1) == 10).all()
        assert (np.abs(parts - 10 * shares) < 1).all()
        assert np.allclose(parts.mean(0), 10 * shares, atol=0.03)


class TestIid:
    def test_sizes_differ_by_one_at_most_and_laws_are_global(self):
        split = make_partition(balanced(10, 1001), scheme="iid", num_clients=8, rng=0)
        assert set(split.sizes) == {1251, 1252}
        assert split.statistics.total_variation < 0.05
        assert split.statistics.effective_classes > 9.9

    def test_label_counts_are_hypergeometric(self):
        labels = balanced(2, 50)
        counts = [
            make_partition(labels, scheme="iid", num_clients=4, rng=seed).label_counts[0, 0]
            for seed in range(1000)
        ]
        assert np.mean(counts) == pytest.approx(12.5, abs=0.2)
        assert np.var(counts) == pytest.approx(25 * 0.25 * 75 / 99, rel=0.1)


class TestDirichletLabel:
    @pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
    def test_shares_of_a_class_are_dirichlet_over_clients(self, alpha: float):
        num_clients, per_class = 8, 300
        split = make_partition(
            balanced(1500, per_class),
            scheme="dirichlet_label",
            num_clients=num_clients,
            dirichlet_alpha=alpha,
            rng=0,
        )
        shares = split.label_counts / per_class
        mean = 1 / num_clients
        assert np.allclose(shares.mean(1), mean, atol=0.03)
        assert shares.var() == pytest.approx(
            mean * (1 - mean) / (num_clients * alpha + 1), rel=0.06
        )

    def test_skew_falls_as_alpha_grows(self):
        def distance(alpha: float) -> float:
            split = make_partition(
                balanced(10, 600),
                scheme="dirichlet_label",
                num_clients=20,
                dirichlet_alpha=alpha,
                rng=0,
            )
            return split.statistics.total_variation

        values = [distance(alpha) for alpha in (0.01, 0.1, 1.0, 10.0, 1000.0)]
        assert values == sorted(values, reverse=True)
        assert values[0] > 0.8
        assert values[-1] < 0.05


class TestDirichletClient:
    @pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
    def test_label_laws_of_clients_are_dirichlet(self, alpha: float):
        num_clients, size = 1000, 200
        split = make_partition(
            balanced(10, num_clients * size // 10),
            scheme="dirichlet_client",
            num_clients=num_clients,
            dirichlet_alpha=alpha,
            rng=0,
        )
        assert (split.sizes == size).all()
        laws = split.label_counts / size
        law_var = 0.1 * 0.9 / (10 * alpha + 1)
        drawn = law_var + (0.09 - law_var) / size
        # the last clients take what is left, which adds a little
        assert drawn * 0.95 < laws.var() < drawn * 1.18

    def test_a_class_is_as_common_as_in_the_data(self):
        labels = np.repeat([0, 1, 2], [700, 200, 100])
        laws = np.mean(
            [
                make_partition(
                    labels, scheme="dirichlet_client", num_clients=5, dirichlet_alpha=1.0, rng=seed
                ).label_counts
                for seed in range(200)
            ],
            axis=0,
        )
        assert np.allclose(laws / 200, [0.7, 0.2, 0.1], atol=0.05)  # no client id is special


class TestDirichletBalanced:
    def test_a_full_client_gets_no_more(self):
        labels = np.repeat(np.arange(10), numpy_rng(0, "sizes").integers(50, 300, 10))
        split = make_partition(
            labels, scheme="dirichlet_balanced", num_clients=6, dirichlet_alpha=0.3, rng=1
        )
        before = np.cumsum(split.label_counts, axis=1) - split.label_counts
        assert (before[split.label_counts > 0] < len(labels) / 6).all()

    def test_sizes_are_more_even_than_without_the_balance(self):
        def unevenness(scheme: str) -> float:
            return float(
                np.mean(
                    [
                        make_partition(
                            balanced(10, 500),
                            scheme=scheme,
                            num_clients=10,
                            dirichlet_alpha=0.1,
                            rng=seed,
                        ).statistics.size_gini
                        for seed in range(10)
                    ]
                )
            )

        assert unevenness("dirichlet_balanced") < 0.7 * unevenness("dirichlet_label")

    def test_the_first_class_is_a_plain_dirichlet_draw(self):
        shares = np.stack(
            [
                make_partition(
                    balanced(2, 500),
                    scheme="dirichlet_balanced",
                    num_clients=4,
                    dirichlet_alpha=0.5,
                    rng=seed,
                    min_samples=1,
                ).label_counts[:, 0]
                / 500
                for seed in range(400)
            ]
        )
        assert np.allclose(shares.mean(0), 0.25, atol=0.04)
        assert shares.var() == pytest.approx(0.25 * 0.75 / 3, rel=0.1)


class TestPathological:
    @pytest.mark.parametrize(("num_clients", "each"), [(5, 2), (10, 2), (7, 3), (3, 10), (40, 1)])
    def test_every_client_has_so_many_classes_and_uses_are_even(self, num_clients: int, each: int):
        split = make_partition(
            balanced(10, 200),
            scheme="pathological",
            num_clients=num_clients,
            classes_per_client=each,
            rng=0,
        )
        held = split.label_counts > 0
        assert (held.sum(1) == each).all()
        assert held.sum(0).min() >= 1
        assert np.ptp(held.sum(0)) <= 1

    def test_as_many_slots_as_classes_makes_disjoint_clients(self):
        split = make_partition(
            balanced(20, 30), scheme="pathological", num_clients=5, classes_per_client=4, rng=3
        )
        assert ((split.label_counts > 0).sum(0) == 1).all()

    def test_classes_missing_from_the_data_are_not_dealt(self):
        labels = np.array([0, 2, 5] * 20)
        split = make_partition(
            labels,
            scheme="pathological",
            num_clients=3,
            classes_per_client=1,
            rng=0,
            num_classes=8,
        )
        assert split.label_counts.shape == (3, 8)
        assert split.label_counts.max() == 20

    def test_a_rare_class_is_topped_up_from_classes_the_client_was_dealt(self):
        labels = np.repeat([0, 1, 2, 3], [400, 400, 400, 3])
        split = make_partition(
            labels,
            scheme="pathological",
            num_clients=12,
            classes_per_client=2,
            min_samples=80,
            rng=0,
        )
        assert split.statistics.num_moved > 0
        assert split.sizes.min() == 80
        assert ((split.label_counts > 0).sum(1) <= 2).all()

    def test_foreign_classes_are_told(self):
        labels = np.repeat([0, 1], [100, 4])
        split = make_partition(
            labels,
            scheme="pathological",
            num_clients=2,
            classes_per_client=1,
            min_samples=10,
            rng=0,
        )
        assert any("classes their new client was not dealt" in line for line in split.log)


class TestQuantity:
    def test_log_sizes_have_the_deviation_asked_for(self):
        split = make_partition(
            balanced(4, 100_000), scheme="quantity", num_clients=2000, size_sigma=0.7, rng=0
        )
        assert np.log(split.sizes).std() == pytest.approx(0.7, rel=0.05)
        assert split.statistics.total_variation < 0.1

    def test_dirichlet_sizes_have_the_variance_of_dirichlet(self):
        shares = np.stack(
            [
                make_partition(
                    balanced(2, 5000), scheme="quantity", num_clients=10, dirichlet_alpha=2, rng=s
                ).sizes
                / 10_000
                for s in range(300)
            ]
        )
        assert shares.var() == pytest.approx(0.1 * 0.9 / 21, rel=0.1)

    def test_sigma_zero_means_equal_sizes(self):
        split = make_partition(
            balanced(2, 50), scheme="quantity", num_clients=10, size_sigma=0.0, rng=0
        )
        assert (split.sizes == 10).all()


class TestDomain:
    LABELS = np.tile(np.arange(5), 200)
    DOMAINS = np.repeat([0, 1, 2], [600, 300, 100])

    @pytest.mark.parametrize("alpha", [None, 0.1])
    @pytest.mark.parametrize("min_samples", [1, 40])
    def test_a_client_sees_one_domain(self, alpha: float | None, min_samples: int):
        split = make_partition(
            self.LABELS,
            scheme="domain",
            num_clients=10,
            domains=self.DOMAINS,
            dirichlet_alpha=alpha,
            min_samples=min_samples,
            rng=0,
        )
        assert all(len(np.unique(self.DOMAINS[rows])) == 1 for rows in split.indices)
        owners = [int(self.DOMAINS[rows[0]]) for rows in split.indices]
        assert np.bincount(owners).tolist() == [6, 3, 1]

    def test_alpha_skews_labels_within_a_domain(self):
        plain, skewed = (
            make_partition(
                self.LABELS,
                scheme="domain",
                num_clients=10,
                domains=self.DOMAINS,
                dirichlet_alpha=alpha,
                rng=0,
            ).statistics.total_variation
            for alpha in (None, 0.1)
        )
        assert skewed > plain + 0.3


class TestNatural:
    IDS = np.repeat([30, 10, 20, 40], [5, 60, 25, 10])
    LABELS = np.arange(100) % 3

    def test_recorded_clients_come_in_the_order_of_their_ids(self):
        split = make_partition(self.LABELS, scheme="natural", clients=self.IDS, rng=0)
        assert [int(self.IDS[rows[0]]) for rows in split.indices] == [10, 20, 30, 40]
        assert split.sizes.tolist() == [60, 25, 5, 10]
        assert split.log == ()

    def test_fewer_clients_merge_whole_clients_evenly(self):
        split = make_partition(
            self.LABELS, scheme="natural", clients=self.IDS, num_clients=2, rng=0
        )
        assert split.sizes.tolist() == [60, 40]
        assert split.log == ("natural: 4 recorded clients merged into 2",)


class TestLongtail:
    def test_classes_decay_exponentially(self):
        split = make_partition(
            balanced(5, 1000),
            scheme="longtail",
            num_clients=10,
            dirichlet_alpha=1.0,
            imbalance_factor=16.0,
            rng=0,
        )
        assert split.label_counts.sum(0).tolist() == [1000, 500, 250, 125, 63]  # 62.5
        assert split.statistics.num_unused == len(split.unused) == 5000 - 1938
        assert split.log[0] == "longtail: 3062 of 5000 samples are unused"

    def test_no_class_dies_out_and_none_grows(self):
        labels = np.repeat([0, 1, 2], [10, 100, 3])
        split = make_partition(
            labels,
            scheme="longtail",
            num_clients=4,
            dirichlet_alpha=1.0,
            imbalance_factor=1e6,
            rng=0,
        )
        assert split.label_counts.sum(0).tolist() == [10, 1, 1]


def test_the_log_tells_what_the_repair_changed():
    split = make_partition(
        balanced(10, 100),
        scheme="dirichlet_label",
        num_clients=20,
        dirichlet_alpha=0.05,
        min_samples=10,
        rng=0,
    )
    (line,) = split.log
    assert line.startswith(f"min_samples 10: moved {split.statistics.num_moved} samples (")
    assert "mean total variation" in line


def test_an_option_of_another_scheme_is_told_not_hidden():
    split = make_partition(balanced(2, 5), scheme="iid", num_clients=2, dirichlet_alpha=0.1, rng=0)
    assert split.log == ("dirichlet_alpha has no effect on partition 'iid'",)


def test_ten_thousand_clients():
    labels = np.arange(60_000) % 10
    split = make_partition(
        labels, scheme="dirichlet_label", num_clients=10_000, dirichlet_alpha=0.1, rng=0
    )
    assert split.num_clients == 10_000
    assert split.sizes.min() == 1


BAD = [
    ({"scheme": "dirichlet_labels"}, ConfigError, "did you mean 'dirichlet_label'?"),
    ({"num_clients": None}, ConfigError, "partition 'iid' needs num_clients"),
    ({"num_clients": 0}, ConfigError, "num_clients is 0: it must be above 0"),
    ({"num_clients": 2.5}, ConfigError, "num_clients is 2.5: it must be a whole number"),
    ({"num_clients": 41}, PartitionError, "41 clients x min_samples 1 = 41 samples, but .* 40"),
    ({"min_samples": 9}, PartitionError, "5 clients x min_samples 9 = 45 samples, but .* 40"),
    ({"min_samples": 0}, ConfigError, "min_samples is 0: it must be above 0"),
    ({"scheme": "dirichlet_label"}, ConfigError, "'dirichlet_label' needs dirichlet_alpha"),
    ({"dirichlet_alpha": 0.0}, ConfigError, "dirichlet_alpha is 0.0: it must be above 0"),
    ({"dirichlet_alpha": -1.0}, ConfigError, "dirichlet_alpha is -1.0"),
    ({"dirichlet_alpha": float("nan")}, ConfigError, "dirichlet_alpha is nan"),
    ({"dirichlet_alpha": float("inf")}, ConfigError, "dirichlet_alpha is inf"),
    ({"scheme": "pathological"}, ConfigError, "'pathological' needs classes_per_client"),
    (
        {"scheme": "pathological", "classes_per_client": 5},
        PartitionError,
        "classes_per_client is 5, but the data has 4 classes",
    ),
    (
        {"scheme": "pathological", "classes_per_client": 1, "num_clients": 3},
        PartitionError,
        "3 clients x 1 classes = 3 cannot cover 4 classes: set classes_per_client to 2",
    ),
    ({"classes_per_client": 0}, ConfigError, "classes_per_client is 0: it must be above 0"),
    ({"scheme": "quantity"}, ConfigError, "one of dirichlet_alpha and size_sigma: set one"),
    (
        {"scheme": "quantity", "size_sigma": 1.0, "dirichlet_alpha": 1.0},
        ConfigError,
        "one of dirichlet_alpha and size_sigma: set one",
    ),
    ({"size_sigma": -1.0}, ConfigError, "size_sigma is -1.0: it must be at least 0"),
    ({"scheme": "domain"}, PartitionError, "this data set has no domains"),
    (
        {"scheme": "domain", "domains": np.arange(40) % 8},
        PartitionError,
        "5 clients cannot cover 8 domains",
    ),
    (
        {"scheme": "domain", "domains": (np.arange(40) == 0) * 1, "min_samples": 2},
        PartitionError,
        "domain 1 has 1 samples for 1 clients x min_samples 2 = 2",
    ),
    ({"scheme": "natural"}, PartitionError, "this data set has no client ids"),
    ({"scheme": "natural", "num_clients": None}, PartitionError, "has no client ids"),
    (
        {"scheme": "natural", "clients": np.arange(40) % 3},
        PartitionError,
        "num_clients is 5, but the data has 3 clients",
    ),
    ({"scheme": "longtail", "dirichlet_alpha": 1.0}, ConfigError, "needs imbalance_factor"),
    ({"imbalance_factor": 0.5}, ConfigError, "imbalance_factor is 0.5: it must be at least 1"),
    (
        {
            "scheme": "longtail",
            "dirichlet_alpha": 1.0,
            "imbalance_factor": 100.0,
            "min_samples": 8,
        },
        PartitionError,
        "imbalance_factor 100 keeps 14 of 40 samples, fewer than 5 clients x min_samples 8 = 40",
    ),
    ({"dirichlet_alhpa": 1.0}, ConfigError, "'dirichlet_alhpa'; did you mean 'dirichlet_alpha'"),
    ({"clients": np.arange(39)}, PartitionError, "39 clients for 40 labels"),
    ({"domains": np.zeros(40)}, PartitionError, "domains are float64"),
    ({"num_classes": 3}, PartitionError, "label 3 with num_classes 3"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_what_cannot_be_made_is_refused(options: dict, kind: type[FedsimError], message: str):
    whole = {"scheme": "iid", "num_clients": 5, "rng": 0} | options
    with pytest.raises(kind, match=message) as caught:
        make_partition(np.arange(40) % 4, **whole)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(0, dtype=int), "no samples"),
        (np.zeros((3, 2), dtype=int), r"labels are int64 \(3, 2\)"),
        (np.zeros(3), "labels are float64"),
        (np.array([0, -1, 2]), "labels start at -1"),
    ],
)
def test_labels_must_be_class_numbers(labels: np.ndarray, message: str):
    with pytest.raises(PartitionError, match=message):
        make_partition(labels, scheme="iid", num_clients=1, rng=0)


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        make_partition(
            np.arange(9), scheme="iid", num_clients=-1, min_samples=0, dirichlet_alpha=-2, rng=0
        )
    assert len(caught.value.problems) == 3


def test_the_registry_is_a_plain_dict():
    assert type(SCHEMES) is dict
    assert all(load_module(where).__doc__ for where in SCHEMES.values())
