"""What holds for every scheme, whatever it is asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config.families import SCHEMES
from fedsim.data import make_partition
from fedsim.errors import PartitionError

alphas = st.floats(-4, 4).map(lambda exponent: 10.0**exponent)


@st.composite
def asks(draw: st.DrawFn):
    scheme = draw(st.sampled_from(sorted(SCHEMES.keys() - {"dirichlet_drawn"})))
    num_classes = draw(st.integers(1, 12))
    total = draw(st.integers(num_classes, 400))
    source = np.random.default_rng(draw(st.integers(0, 10**6)))
    weights = source.dirichlet(np.ones(num_classes))
    labels = source.choice(num_classes, total, p=weights)  # classes may be missing
    num_clients = draw(st.integers(1, min(total, 40)))
    options = {
        "scheme": scheme,
        "num_clients": num_clients,
        "min_samples": draw(st.integers(1, max(total // num_clients, 1))),
        "num_classes": num_classes,
        "rng": draw(st.integers(0, 2**40)),
    }
    if scheme.startswith("dirichlet") or scheme == "longtail":
        options["dirichlet_alpha"] = draw(alphas)
    if scheme == "longtail":
        options["imbalance_factor"] = draw(st.floats(1, 1000))
    if scheme == "domain":
        options["dirichlet_alpha"] = draw(st.none() | alphas)
        options["domains"] = source.integers(0, draw(st.integers(1, 4)), total)
    if scheme == "natural":
        options["clients"] = source.integers(0, draw(st.integers(1, 60)), total) * 7 - 100
    if scheme == "quantity":
        name = draw(st.sampled_from(["size_sigma", "dirichlet_alpha"]))
        options[name] = draw(alphas if name == "dirichlet_alpha" else st.floats(0, 50))
    if scheme == "pathological":
        options["classes_per_client"] = draw(st.integers(1, num_classes))
    return labels, options


@settings(max_examples=400)
@given(asks())
def test_every_partition_is_disjoint_complete_large_enough_and_repeatable(ask):
    labels, options = ask
    refusal = ""
    try:
        split = make_partition(labels, **options)
    except PartitionError as error:
        refusal = str(error)
    if refusal:
        assert any(character.isdigit() for character in refusal)  # it shows the arithmetic
        assert "\n" not in refusal
        return
    rows = np.concatenate([*split.indices, split.unused])
    assert np.array_equal(np.sort(rows), np.arange(len(labels)))  # disjoint, nothing lost
    assert options["scheme"] == "longtail" or len(split.unused) == 0
    assert split.num_clients == options["num_clients"]
    assert split.sizes.min() >= options["min_samples"]
    assert split.statistics.size_min == split.sizes.min()
    for rows, counts in zip(split.indices, split.label_counts, strict=True):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert np.array_equal(np.bincount(labels[rows], minlength=len(counts)), counts)
    assert bool(split.statistics.num_moved) == any("moved" in line for line in split.log)
    again = make_partition(labels, **options)
    assert all(np.array_equal(a, b) for a, b in zip(split.indices, again.indices, strict=True))


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-4, 1e4, 1e300])
@pytest.mark.parametrize(
    "scheme", ["dirichlet_label", "dirichlet_client", "dirichlet_balanced", "longtail", "quantity"]
)
def test_no_concentration_is_too_extreme(scheme: str, alpha: float):
    labels = np.arange(3000) % 10
    factor = 5.0 if scheme == "longtail" else None
    split = make_partition(
        labels,
        scheme=scheme,
        num_clients=100,
        min_samples=5,
        dirichlet_alpha=alpha,
        imbalance_factor=factor,
        rng=0,
    )
    assert split.sizes.min() >= 5
    assert np.isfinite(split.statistics.total_variation)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_the_seed_decides(scheme: str):
    labels = np.arange(500) % 5
    options = {"scheme": scheme, "num_clients": 10}
    needs = {
        "pathological": {"classes_per_client": 2},
        "quantity": {"size_sigma": 1.0},
        "domain": {"domains": np.arange(500) % 3},
        "natural": {"clients": np.arange(500) // 50},
        "longtail": {"dirichlet_alpha": 0.5, "imbalance_factor": 3.0},
        "dirichlet_drawn": {"samples_per_client": 20},
    }
    if scheme.startswith("dirichlet"):
        options["dirichlet_alpha"] = 0.5
    options |= needs.get(scheme, {})
    one, two = (make_partition(labels, rng=seed, **options) for seed in (0, 1))
    same = all(np.array_equal(a, b) for a, b in zip(one.indices, two.indices, strict=True))
    assert same == (scheme == "natural")  # recorded clients are not drawn


def test_a_generator_is_drawn_from_and_a_seed_is_not_the_global_one():
    labels = np.arange(100) % 5
    generator = np.random.default_rng(3)
    first = make_partition(labels, scheme="iid", num_clients=4, rng=generator)
    second = make_partition(labels, scheme="iid", num_clients=4, rng=generator)
    assert not np.array_equal(first.indices[0], second.indices[0])
    a = make_partition(labels, scheme="iid", num_clients=4, rng=np.int64(5))
    b = make_partition(labels, scheme="iid", num_clients=4, rng=5)
    assert np.array_equal(a.indices[0], b.indices[0])
