"""Sums over clients do not depend on order or grouping, bit by bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.params import ExactSum, Params

finite = st.floats(-1e3, 1e3, width=32)
clients = st.lists(
    st.tuples(st.lists(finite, min_size=3, max_size=3), st.floats(0, 1e4)),
    min_size=1,
    max_size=12,
)


def summed(
    parts: list[list[int]], values: Tensor, weights: Tensor, merge_order: list[int]
) -> Params:
    """Partial sums over `parts` (positions of clients), merged in `merge_order`."""
    bound, count = max(1.0, float(weights.sum())), len(values)
    partial = []
    for part in parts:
        one = ExactSum(bound, count)
        if part:
            one.add({"w": values[part], "b": values[part, :1]}, weights[part])
        partial.append(one)
    total = ExactSum(bound, count)
    for at in merge_order:
        total.merge(partial[at])
    return total.mean() | {f"sum of {name}": value for name, value in total.sums.items()}


@settings(max_examples=80, deadline=None)
@given(clients, st.data())
def test_any_order_and_any_grouping_give_the_same_bits(
    given_clients: list[tuple[list[float], float]], data: st.DataObject
):
    values = torch.tensor([v for v, _ in given_clients])
    weights = torch.tensor([float(w) for _, w in given_clients], dtype=torch.float64)
    count = len(values)
    reference = summed([list(range(count))], values, weights, [0])
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    parts = [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    merge_order = data.draw(st.permutations(range(len(parts))))
    other = summed(parts, values, weights, list(merge_order))
    assert set(other) == set(reference)
    assert all(torch.equal(other[name], reference[name]) for name in reference)


@settings(max_examples=80, deadline=None)
@given(clients)
def test_the_mean_is_that_of_float64(given_clients: list[tuple[list[float], float]]):
    values = torch.tensor([v for v, _ in given_clients])
    weights = torch.tensor([float(w + 1) for _, w in given_clients], dtype=torch.float64)
    mean = summed([list(range(len(values)))], values, weights, [0])["w"]
    expected = (values.double() * weights[:, None]).sum(0) / weights.sum()
    # values up to 1e3: the weights' own rounding to 2**-40 is scaled by them
    bound = 1e3 * len(values) * 2.0**-39 + expected.abs() * 2.0**-23
    assert ((mean.double() - expected).abs() <= bound).all()


@settings(max_examples=60, deadline=None)
@given(
    clients, st.integers(0, 11), st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30])
)
def test_a_bad_value_is_refused_and_the_others_are_not(
    given_clients: list[tuple[list[float], float]], at: int, bad: float
):
    values = torch.tensor([v for v, _ in given_clients])
    at %= len(values)
    values[at, 1] = bad
    weights = torch.tensor([float(w + 1) for _, w in given_clients], dtype=torch.float64)
    total = ExactSum(float(weights.sum()), len(values))
    assert [c for c, _ in total.refused({"w": values}, weights)] == [at]
