"""What a method may read of its experiment."""

from __future__ import annotations

import pytest

from fedsim.config import Experiment, TrainConfig


def test_a_method_reads_the_sections_of_its_experiment() -> None:
    experiment = Experiment(
        study="s",
        method="mine",
        use="fedavg",
        options={"mix": 2.0},
        seed=7,
        train=TrainConfig(seed=3),
    )
    config = experiment.for_method()
    assert (config.method, config.use, config.options) == ("mine", "fedavg", {"mix": 2.0})
    assert config.train is experiment.train
    assert (config.seed, config.partition_seed, config.train_seed) == (7, 7, 3)


@pytest.mark.parametrize("name", ["partition", "wire", "noise", "failures", "evaluation", "output"])
def test_a_method_does_not_read_what_is_not_its_own(name: str) -> None:
    experiment = Experiment(study="s", method="mine", use="fedavg")
    assert hasattr(experiment, name)
    assert not hasattr(experiment.for_method(), name)
