"""What the simulator adds to clients: batches, exact sums, splits, tables and checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.config.sections import TrainConfig
from fedsim.data import make_partition
from fedsim.engine.batching import Group, make_batches
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.client_states import ClientState, ClientStates
from fedsim.engine.schedule import assign, sample_cohort
from fedsim.params import ExactSum, norms
from fedsim.results.tables.writer import TableWriter

UPDATES = {
    "network of 80,000": (10, 80_000),
    "keys of 1,600 x 1,024": (2, 1_638_400),
}
LABELS = np.arange(60_000) % 10


def updates(size: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    clients, count = UPDATES[size]
    rng = torch.Generator().manual_seed(0)
    return {"w": 0.01 * torch.randn(clients, count, generator=rng)}, torch.full((clients,), 100.0)


@pytest.mark.parametrize("size", UPDATES)
@pytest.mark.benchmark(group="one group's updates, checked and added exactly")
def test_exact_sum(benchmark, size: str):
    delta, weight = updates(size)

    def add() -> None:
        total = ExactSum(10_000, 100)
        assert not total.refused(delta, weight)
        total.add(delta, weight)

    benchmark(add)


@pytest.mark.parametrize("size", UPDATES)
@pytest.mark.benchmark(group="one group's update norms")
def test_norms(benchmark, size: str):
    delta, _ = updates(size)
    benchmark(norms, delta)


@pytest.mark.benchmark(group="per group of 10 clients")
def test_batches(benchmark):
    rows = tuple(np.split(np.arange(430), 10))
    inputs, labels = torch.zeros(430, 8), torch.zeros(430, dtype=torch.int64)
    group, train = Group(0, tuple(range(10)), rows), TrainConfig(batch_size=10)
    benchmark(make_batches, group, inputs, labels, train, 0, 1)


@pytest.mark.parametrize("num_clients", [1_000, 1_000_000])
@pytest.mark.benchmark(group="a cohort of 100: sampled, drawn, assigned to 2 actors")
def test_cohort(benchmark, num_clients: int):
    drawn = make_partition(
        LABELS,
        scheme="dirichlet_drawn",
        num_clients=num_clients,
        dirichlet_alpha=0.1,
        samples_per_client=60,
        size_sigma=0.5,
        rng=0,
    ).indices

    def cohort() -> None:
        chosen = sample_cohort(num_clients, 100, 0, 1)
        groups = [
            Group(at, tuple(chosen[at : at + 10]), tuple(drawn[c] for c in chosen[at : at + 10]))
            for at in range(0, 100, 10)
        ]
        assign(groups, [1.0, 1.0])

    benchmark(cohort)


@pytest.mark.benchmark(group="a disjoint split of 60,000 samples over 1,000 clients")
def test_partition(benchmark):
    options = {"scheme": "dirichlet_label", "num_clients": 1000, "dirichlet_alpha": 0.1}
    benchmark(make_partition, LABELS, rng=0, **options)


@pytest.mark.parametrize("rounds", [10, 300])
@pytest.mark.benchmark(group="100 client rows appended and committed, after so many rounds")
def test_tables(benchmark, tmp_path: Path, rounds: int):
    writer = TableWriter(tmp_path, "run")
    rows = [
        {"round": 1, "client_id": c, "num_samples": 60, "status": "ok", "train_s": 0.1}
        for c in range(100)
    ]
    for _ in range(rounds):
        writer.append("clients", rows)

    def commit() -> None:
        writer.append("clients", rows)
        writer.commit()

    benchmark(commit)


@pytest.mark.benchmark(group="a checkpoint of 6.5 MB")
def test_checkpoint(benchmark, tmp_path: Path):
    folder = CheckpointFolder(tmp_path, "run")
    folder.claim()
    state = {"state": {"keys": torch.zeros(1600, 1024)}}
    rounds = iter(range(1_000_000))
    benchmark(lambda: folder.save(next(rounds), state))
    folder.release()


@pytest.mark.parametrize("ever", [100, 10_000])
@pytest.mark.benchmark(group="what a cohort of 100 keeps, written, after so many ever sampled")
def test_client_states(benchmark, tmp_path: Path, ever: int):
    states = ClientStates(tmp_path)
    states.update({c: ClientState({"w": torch.zeros(1000)}) for c in range(ever)})
    states.commit(0)
    rounds = iter(range(1, 1_000_000))

    def commit() -> None:
        number = next(rounds)
        ones = ClientState({"w": torch.ones(1000)})
        states.update({(number * 100 + c) % ever: ones for c in range(100)})
        states.commit(number)

    benchmark(commit)
