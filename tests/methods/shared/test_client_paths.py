"""Checkpoints lie on the path that a client takes anyway, at its own steps."""

from dataclasses import replace

import pytest
import torch

from fedsim.config.sections import TrainConfig
from fedsim.methods.shared.client_paths import read_paths, train_paths
from fedsim.methods.training import train_locally
from fedsim.params import Params, unstack
from tests.helpers import batches_of, local_data, unit

SIZES, SEGMENTS = (22, 5, 11), 4
START: Params = {"head": unit(4, 8, seed=3)}
HARDER = {"momentum": 0.9, "proximal_mu": 0.5, "weight_decay": 0.01}


def logits(params: Params, x: torch.Tensor) -> torch.Tensor:
    return x @ params["head"].mT


def config(**settings: float) -> TrainConfig:
    return TrainConfig(batch_size=4, local_epochs=2, lr=0.1, **settings)


@pytest.mark.parametrize("settings", [{}, HARDER])
def test_checkpoints_change_nothing_that_clients_train(settings: dict[str, float]):
    inputs, labels, rows = local_data(SIZES)
    batches = batches_of(config(**settings), rows, inputs, labels)
    plain = train_locally(START, logits, batches)
    change, beside = train_paths(logits, [START], batches, SEGMENTS)
    assert torch.equal(change["head"], plain["head"])
    for c in range(len(SIZES)):
        stretches = read_paths([START], unstack(change, c), beside[c], SEGMENTS)
        assert len(stretches) == SEGMENTS
        assert torch.equal(stretches[0][0]["head"], START["head"])
        assert torch.allclose(stretches[-1][1]["head"], START["head"] + plain["head"][c])


def test_checkpoints_are_a_client_s_own_whoever_its_neighbours_are():
    """Also beside clients who train longer a quarter of its steps is a stretch."""
    inputs, labels, rows = local_data(SIZES)
    _, beside = train_paths(
        logits, [START], batches_of(config(**HARDER), rows, inputs, labels), SEGMENTS
    )
    for c in range(len(SIZES)):
        alone = batches_of(config(**HARDER), rows, inputs, labels, clients=[c, c])
        steps = int(alone.num_steps[0])
        for n in range(1, SEGMENTS):
            cut = replace(alone, steps=alone.steps[: steps * n // SEGMENTS])
            there = train_locally(START, logits, cut)["head"][0]
            torch.testing.assert_close(beside[c][f"checkpoint_{n}/head"], there)


def test_stretches_without_a_step_are_left_out():
    inputs, labels, rows = local_data((3, 8))
    batches = batches_of(TrainConfig(batch_size=4, local_epochs=1), rows, inputs, labels)
    change, beside = train_paths(logits, [START], batches, 2)
    found = [len(read_paths([START], unstack(change, c), beside[c], 2)) for c in (0, 1)]
    assert found == [1, 2]
