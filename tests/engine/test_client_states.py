"""What clients keep: the log of files, what a checkpoint finds again, what is removed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.engine.client_states import ClientState, ClientStates
from fedsim.errors import CheckpointError


def state(value: float) -> ClientState:
    return ClientState({"w": torch.full((3,), value), "times": int(value)})


def values(states: ClientStates) -> dict[int, float]:
    return {client: float(states[client].method["w"][0]) for client in sorted(states)}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_who_keeps_nothing_leaves_nothing(tmp_path: Path):
    states = ClientStates(tmp_path)
    assert states.commit(0) == states.commit(1) == []
    assert files(tmp_path) == []
    assert states.get(5) is None


def test_a_round_writes_its_own_clients_and_a_commit_is_found_again(tmp_path: Path):
    states = ClientStates(tmp_path)
    states.update({1: state(1), 2: state(2), 3: state(3)})
    first = states.commit(1)
    states.update({2: state(20)})
    assert values(states) == {1: 1, 2: 20, 3: 3}
    second = states.commit(2)
    assert (first, second) == ([1], [1, 2])
    alone = torch.load(tmp_path / "states-000002.pt", weights_only=True)
    assert list(alone) == [2]
    for rounds, expected in ((second, 20), (first, 2)):
        again = ClientStates(tmp_path)
        again.restore(rounds)
        assert values(again) == {1: 1, 2: expected, 3: 3}
        assert again[2].method["times"] == expected


def test_a_kill_before_the_checkpoint_leaves_the_last_one_whole(tmp_path: Path):
    states = ClientStates(tmp_path)
    states.update({1: state(1), 2: state(2)})
    kept = states.commit(1)
    states.update({1: state(9), 2: state(9)})
    states.commit(2)  # and no checkpoint names it
    again = ClientStates(tmp_path)
    again.restore(kept)
    assert values(again) == {1: 1, 2: 2}
    again.update({1: state(5)})
    assert again.commit(2) == [1, 2]  # in place of the file that does not count
    assert values(again) == {1: 5, 2: 2}


def test_files_hold_no_more_than_twice_what_counts(tmp_path: Path):
    states, expected = ClientStates(tmp_path), {}
    rng = np.random.default_rng(0)
    for round in range(1, 60):
        cohort = rng.choice(20, size=5, replace=False).tolist()
        expected |= {client: float(round) for client in cohort}
        states.update({client: state(round) for client in cohort})
        counted = states.commit(round)
        assert values(states) == expected
        names = [f"states-{r:06d}.pt" for r in counted]
        assert set(names) <= set(files(tmp_path))
        stored = [len(torch.load(tmp_path / name, weights_only=True)) for name in names]
        assert sum(stored) <= 2 * len(states)
        again = ClientStates(tmp_path)
        again.restore(counted)
        assert values(again) == expected
    assert len(files(tmp_path)) < 20  # 59 rounds wrote one each


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"states-000003.pt.*start it anew"):
        ClientStates(tmp_path).restore([3])


def test_states_that_could_not_be_read_back_are_refused(tmp_path: Path):
    states = ClientStates(tmp_path)
    states.update({0: ClientState({"w": np.float64(1)})})
    with pytest.raises(CheckpointError, match="numpy"):
        states.commit(1)
    assert files(tmp_path) == []


def test_what_steps_keep_is_found_again(tmp_path: Path):
    states = ClientStates(tmp_path)
    states.update({4: ClientState({"a": 1}, {"compression": {"w": torch.ones(2)}})})
    again = ClientStates(tmp_path)
    again.restore(states.commit(1))
    assert again[4].method == {"a": 1}
    assert torch.equal(again[4].steps["compression"]["w"], torch.ones(2))


def test_files_of_older_versions_are_read(tmp_path: Path):
    """They held the method's state, and what compression lost under a name of its own."""
    lost = {"w": torch.ones(2)}
    torch.save({3: {"a": 1, "wire residual": lost}, 5: {"a": 2}}, tmp_path / "states-000001.pt")
    states = ClientStates(tmp_path)
    states.restore([1])
    assert states[3].method == {"a": 1}
    assert torch.equal(states[3].steps["compression"]["w"], lost["w"])
    assert states[5] == ClientState({"a": 2}, {})
