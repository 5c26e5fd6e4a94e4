"""Class weighting against its definition."""

import pytest
import torch

from fedsim.engine.update_steps.class_weighting import (
    class_shares,
    divide_by_class,
    weigh_by_class,
)
from fedsim.params import ExactSum


@pytest.mark.parametrize("weighting", [0.25, 1.0])
def test_rows_are_averaged_by_the_samples_of_their_class(weighting: float):
    generator = torch.Generator().manual_seed(0)
    rows = {"keys": torch.tensor([0, 0, 1, 2])}
    delta = {"keys": torch.randn(3, 4, 5, generator=generator), "bias": torch.ones(3, 2)}
    counts = torch.tensor([[8.0, 0, 0], [1, 1, 0], [0, 2, 0]])
    samples = counts.sum(1).double()
    share = class_shares(counts, samples, weighting)
    total, shares = ExactSum(float(samples.sum()), 3), ExactSum(float(samples.sum()), 3)
    total.add(weigh_by_class(delta, rows, share), samples)
    shares.add({"share": share}, samples)
    got = divide_by_class(total.mean(), rows, shares.mean()["share"])
    weights = (1 - weighting) * samples[:, None] / 3 + weighting * counts.double()
    for row, label in enumerate(rows["keys"].tolist()):
        w = weights[:, label]
        mean = (w[:, None] * delta["keys"][:, row].double()).sum(0) / w.sum().clamp_min(1e-30)
        torch.testing.assert_close(got["keys"][row].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["bias"], torch.ones(2))  # not a row of any class
