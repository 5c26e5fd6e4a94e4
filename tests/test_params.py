"""Named tensors: exact sums, bytes, norms, and trees of tensors."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from fedsim.methods.base import Update
from fedsim.params import (
    ExactSum,
    Product,
    add,
    map_tensors,
    norms,
    num_bytes,
    stack,
    subtract,
    unstack,
)


def exact_mean(values: Tensor, weights: Tensor) -> list[float]:
    """Weighted mean over clients in rational arithmetic, one number per column."""
    total = sum(Fraction(float(w)) for w in weights)
    return [
        float(
            sum(
                Fraction(float(w)) * Fraction(float(v))
                for w, v in zip(weights, column, strict=True)
            )
            / total
        )
        for column in values.T
    ]


def test_the_mean_is_the_weighted_mean():
    total = ExactSum(total_weight=4, max_terms=2)
    total.add({"w": torch.tensor([[1.0, 0.0], [5.0, -2.0]])}, torch.tensor([3.0, 1.0]))
    assert total.mean()["w"].tolist() == [2.0, -0.5]
    assert total.mean()["w"].dtype == torch.float32
    assert total.num_clients == 2


@pytest.mark.parametrize("total_weight", [1, 3, 64, 1000, 123_457])
def test_sums_are_as_precise_as_forty_bits(total_weight: int):
    generator = torch.Generator().manual_seed(total_weight)
    values = torch.rand(20, 6, generator=generator) * 2 - 1
    weights = torch.rand(20, generator=generator, dtype=torch.float64)
    weights *= total_weight / weights.sum()
    total = ExactSum(total_weight * (1 + 1e-12), max_terms=20)
    total.add({"w": values}, weights)
    mean = (total.sums["w"].double() / total.weight).tolist()
    assert mean == pytest.approx(exact_mean(values, weights), rel=0, abs=20 * 2.0**-39)
    assert total.mean()["w"].double().tolist() == pytest.approx(mean, rel=2.0**-23, abs=0)


def test_nothing_added_has_no_mean():
    assert ExactSum(10, 3).mean() == {}


def test_a_ghost_of_weight_zero_counts_for_nothing():
    alone, with_ghost = ExactSum(7, 2), ExactSum(7, 2)
    alone.add({"w": torch.tensor([[0.3, 0.7]])}, torch.tensor([7.0]))
    with_ghost.add({"w": torch.tensor([[0.3, 0.7], [9.0, 9.0]])}, torch.tensor([7.0, 0.0]))
    assert torch.equal(alone.mean()["w"], with_ghost.mean()["w"])


def test_partial_sums_of_different_rounds_do_not_mix():
    with pytest.raises(ValueError, match="different rounds"):
        ExactSum(8, 2).merge(ExactSum(9, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_with_the_right_client(value: float):
    values = torch.zeros(4, 2, 3)
    values[1, 0, 2] = values[3, 1, 1] = values[3, 0, 0] = value
    weight = torch.ones(4, dtype=torch.float64)
    refused = ExactSum(4, 4).refused({"fine": torch.ones(4, 2), "keys": values}, weight)
    assert refused == [
        (1, "1 of 6 values of 'keys' are NaN or infinite"),
        (3, "2 of 6 values of 'keys' are NaN or infinite"),
    ]


def test_values_that_would_overflow_are_refused():
    total = ExactSum(total_weight=4, max_terms=4)
    values = torch.tensor([[1.0], [-1e9], [5e6], [1e30]])
    weight = torch.ones(4, dtype=torch.float64)
    refused = total.refused({"w": values}, weight)
    assert [c for c, _ in refused] == [1, 2, 3]
    assert "as large as 1e+09" in refused[0][1]


def test_what_is_not_refused_never_overflows():
    """The largest values that pass, from every client at once, still add up exactly."""
    largest = 2.0**22 / 8 * 0.999
    total = ExactSum(total_weight=1, max_terms=8)
    values, weight = torch.full((8, 1), largest), torch.full((8,), 1.0, dtype=torch.float64)
    assert total.refused({"w": values}, weight) == []
    total.add({"w": values}, weight)
    assert total.sums["w"].item() == pytest.approx(8 * largest * 2.0**40, rel=1e-6)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 1e30])
def test_impossible_weights_are_refused_as_weights(weight: float):
    weights = torch.tensor([1.0, weight], dtype=torch.float64)
    refused = ExactSum(2, 2).refused({"w": torch.zeros(2, 3)}, weights)
    assert refused == [(1, f"its weight is {weight:g}")]
    refused = ExactSum(2, 2).refused({"w": torch.ones(2, 3)}, weights)
    assert refused == [(1, f"its weight is {weight:g}")]


def test_empty_tensors_are_no_trouble():
    total = ExactSum(2, 2)
    empty, weight = {"none": torch.zeros(2, 0)}, torch.ones(2, dtype=torch.float64)
    assert total.refused(empty, weight) == []
    total.add(empty, weight)
    assert total.mean()["none"].shape == (0,)


def product(*clients: int) -> Product:
    """Four clients' `(3, 5)` tensors of rank 2, or these of them."""
    left, right = (torch.randn(4, 2, n, generator=torch.Generator().manual_seed(n)) for n in (3, 5))
    whole = Product(left, right, right @ right.mT)
    return whole[list(clients)] if clients else whole


def test_a_product_is_as_long_as_its_tensor_and_sums_to_the_same_mean():
    made, weight = product(), torch.tensor([1.0, 0.0, 2.5, 7.0], dtype=torch.float64)
    tensor, extra = made.formed(), {"bias": torch.ones(4, 2)}
    torch.testing.assert_close(tensor[2], made.left[2].T @ made.right[2])
    torch.testing.assert_close(norms(extra, {"keys": made}), norms(extra | {"keys": tensor}))
    assert num_bytes({"keys": tensor[0]}) == made.num_bytes
    formed, factored = ExactSum(11, 4), ExactSum(11, 4)
    formed.add(extra | {"keys": tensor}, weight)
    factored.add(extra, weight, {"keys": made})
    assert factored.weight == formed.weight
    assert factored.num_clients == 4
    torch.testing.assert_close(factored.mean(), formed.mean(), rtol=1e-6, atol=1e-6)


def test_groups_of_products_merge_in_any_order():
    weight = torch.ones(2, dtype=torch.float64)
    halves = [product(0, 1), product(2, 3)]
    sums = []
    for order in (halves, halves[::-1]):
        whole = ExactSum(4, 4)
        for half in order:
            part = ExactSum(4, 4)
            part.add({}, weight, {"keys": half})
            whole.merge(part)
        sums.append(whole.sums["keys"])
    assert torch.equal(*sums)


def test_products_are_refused_as_their_tensors_are():
    made, weight = product(), torch.ones(4, dtype=torch.float64)
    made.left[1, 0, 2] = float("nan")
    made.left[2] *= 1e8
    total = ExactSum(4, 4)
    found = total.refused({}, weight, {"keys": made})
    assert found == total.refused({"keys": made.formed()}, weight)
    assert [client for client, _ in found] == [1, 2]
    assert "5 of 15 values of 'keys' are NaN" in found[0][1]


def test_a_long_product_of_small_values_is_not_refused():
    """What counts is the largest value, not the length."""
    left, right = torch.full((1, 1, 400), 1000.0), torch.ones(1, 1, 400)
    made, weight = Product(left, right, right @ right.mT), torch.ones(1, dtype=torch.float64)
    total = ExactSum(1, 16)
    assert made.lengths.item() == pytest.approx(4e5)
    assert made.lengths.item() > 2**22 / 16
    assert total.refused({}, weight, {"keys": made}) == []


def test_a_single_number_per_client_is_summed_too():
    """Such as a trained temperature."""
    values, weight = {"scale": torch.tensor([1.0, 3.0, torch.nan])}, torch.tensor([1.0, 3.0, 1.0])
    total = ExactSum(5, 3)
    assert total.refused(values, weight) == [(2, "1 of 1 values of 'scale' are NaN or infinite")]
    total.add({"scale": values["scale"][:2]}, weight[:2])
    assert total.mean()["scale"].item() == 2.5
    assert norms({"scale": torch.tensor([-2.0, 3.0])}).tolist() == [2.0, 3.0]
    assert stack({"scale": torch.tensor(1.5)}, 2)["scale"].shape == (2,)


def test_bytes_are_counted_from_the_tensors():
    params = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.float16),
        "c": torch.zeros(2, 2, dtype=torch.int64),
        "d": torch.zeros(0),
    }
    assert num_bytes(params) == 3 * 5 * 4 + 7 * 2 + 4 * 8
    assert num_bytes({}) == 0


def test_norms_are_over_all_tensors_of_a_client():
    params = {"a": torch.tensor([[3.0], [0.0]]), "b": torch.tensor([[[4.0, 0.0]], [[0.0, 2.0]]])}
    assert norms(params).tolist() == [5.0, 2.0]
    assert norms(params).dtype == torch.float64


def test_clipped_updates_keep_direction_and_small_ones_stay():
    delta = {"a": torch.tensor([[3.0], [0.3], [0.0]]), "b": torch.tensor([[4.0], [0.4], [0.0]])}
    update = Update(delta, torch.ones(3), linear=False)
    clipped = update.clipped(1.0)
    assert norms(clipped.delta).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert clipped.delta["a"][0].item() / clipped.delta["b"][0].item() == pytest.approx(0.75)
    assert torch.equal(clipped.delta["a"][1:], delta["a"][1:])  # below the norm: the same bits
    assert clipped.linear is False
    assert clipped.weight is update.weight
    assert norms(update.delta)[0].item() == 5.0  # the original is untouched


def test_clipping_never_exceeds_the_norm():
    generator = torch.Generator().manual_seed(0)
    delta = {"a": torch.randn(50, 40, generator=generator) * 100}
    assert norms(Update(delta, torch.ones(50)).clipped(0.1).delta).max() <= 0.1 * (1 + 1e-6)


def test_stacking_copies():
    params = {"w": torch.arange(3.0), "b": torch.tensor(2.0)}
    stacked = stack(params, 2)
    assert stacked["w"].shape == (2, 3)
    assert stacked["b"].shape == (2,)
    stacked["w"][0] += 1
    assert params["w"].tolist() == [0, 1, 2]
    assert unstack(stacked, 1)["w"].tolist() == [0, 1, 2]


def test_add_undoes_subtract_and_keeps_other_names():
    left, right = {"w": torch.tensor([2.0, 3.0])}, {"w": torch.tensor([0.5, 0.25])}
    assert torch.equal(add(right, subtract(left, right))["w"], left["w"])
    state = {"w": torch.zeros(2), "text": torch.ones(1)}
    assert set(add(state, left)) == {"w", "text"}
    assert state["w"].tolist() == [0, 0]


def test_add_keeps_the_type_of_what_is_added_to():
    half = {"w": torch.zeros(2, dtype=torch.float16)}
    assert add(half, {"w": torch.ones(2)})["w"].dtype == torch.float16


@dataclass(frozen=True)
class Leaf:
    value: Tensor
    name: str


def test_trees_of_tensors_keep_their_shape():
    tree = {"a": [torch.ones(1), (Leaf(torch.ones(1), "x"), 3)], 5: None}
    doubled = map_tensors(tree, lambda t: t * 2)
    assert doubled["a"][0].item() == 2
    leaf, three = doubled["a"][1]
    assert (leaf.value.item(), leaf.name, three, doubled[5]) == (2, "x", 3, None)
    assert tree["a"][0].item() == 1
