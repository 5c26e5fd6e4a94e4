"""Whole runs in this process: packing, failures, resumption, and what is written down."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedsim
from fedsim.config import Experiment
from fedsim.engine import checkpoint
from fedsim.engine.client_states import ClientStates
from fedsim.engine.host import ClientHost, Done, Work
from fedsim.engine.local import LocalPool, drive
from fedsim.engine.round import Federation
from fedsim.engine.schedule import assign
from fedsim.errors import CheckpointError, ClientError, QuorumError
from fedsim.inputs.draw_images import Job, Recipe
from fedsim.params import Params
from fedsim.results.tables.equality import equal_results
from fedsim.seeding import numpy_rng
from tests.helpers import experiment, federation, run

Toy = Callable[..., Experiment]


class ManyHosts:
    """Several hosts that finish in an order of their own, as actors do."""

    def __init__(self, config: Experiment, num_actors: int, order: int) -> None:
        self.num_actors = num_actors
        self._hosts = [ClientHost(config) for _ in range(num_actors)]
        self._rng = numpy_rng(order, "completion")

    def train(self, work: Work, message: Params) -> Iterator[Done]:
        plan = assign(work.groups, self._rng.uniform(0.2, 5, self.num_actors).tolist())
        for at in self._rng.permutation(self.num_actors):
            part = Work(work.round, plan[at], work.states, work.cohort_samples, work.cohort_size)
            if plan[at]:
                yield self._hosts[at].train(part, message)

    def draw(self, recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, np.ndarray]]:
        raise NotImplementedError  # toys start from features

    def take_events(self) -> list[tuple[str, str]]:
        return [("pool", "shuffled")]


# --- packing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Drawing", "Stateful", "Kept"])
def test_results_do_not_depend_on_hosts_or_on_who_finishes_first(
    toy: Toy, tmp_path: Path, name: str
):
    config = toy(name, engine__group_size=2, train__participation=0.8, partition__num_clients=9)
    reference = run(config, tmp_path / "one")
    for hosts, order in ((2, 0), (3, 1), (8, 2)):
        other = run(config, tmp_path / f"{hosts}", ManyHosts(config, hosts, order))
        assert equal_results(reference, other) == []
        final = torch.load(next((tmp_path / f"{hosts}").glob("checkpoints/*/round-000003.pt")))
        mine = torch.load(next((tmp_path / "one").glob("checkpoints/*/round-000003.pt")))
        assert torch.equal(final["state"]["head"], mine["state"]["head"])


def test_cells_are_equal_for_other_packings_too(features: Path, tmp_path: Path):
    """`clients_per_actor` moves groups about; with the size of groups given, nothing changes."""
    one = experiment(features, engine__group_size=3, resources__clients_per_actor=1)
    two = experiment(features, engine__group_size=3, resources__num_actors=2)
    assert one.run_id == two.run_id
    assert equal_results(run(one, tmp_path / "a"), run(two, tmp_path / "b")) == []


def test_updates_are_received_sorted_by_client(toy: Toy, tmp_path: Path):
    config = toy("Kept", engine__group_size=2, train__participation=0.7)
    made = federation(config, tmp_path, ManyHosts(config, 3, 0))
    drive(made, lambda row: None)
    order = made._state["order"]
    assert order == sorted(order)
    assert len(order) == 4


# --- failures ------------------------------------------------------------------------------------


def events(folder: Path, kind: str) -> pd.DataFrame:
    found = fedsim.load(folder).events
    return found[found["kind"] == kind]


def test_raise_ends_the_run_and_leaves_the_traceback(toy: Toy, tmp_path: Path):
    config = toy("Faulty", {"clients": [2]})
    with pytest.raises(ClientError, match="client 2 failed in round 1") as caught:
        run(config, tmp_path)
    assert "toys.py" in caught.value.reason
    (event,) = events(tmp_path, "client_failed").itertuples()
    assert (event.client_id, event.round) == (2, 1)
    assert "ValueError: client 2 holds bad data" in event.message
    assert "Traceback" in event.message
    study = fedsim.load(tmp_path)
    (row,) = study.runs.itertuples()
    assert row.status == "failed"
    assert "ClientError" in row.error
    assert study.rounds["round"].tolist() == [0]


def test_drop_goes_on_with_the_others(toy: Toy, tmp_path: Path):
    config = toy("Faulty", {"clients": [2, 4]}, failures__policy="drop", train__rounds=2)
    run(config, tmp_path)
    study = fedsim.load(tmp_path)
    assert study.rounds["num_clients_ok"].tolist() == [0, 4, 4]
    assert study.rounds["num_clients_failed"].tolist() == [0, 2, 2]
    last = study.clients[study.clients["round"] == 2].set_index("client_id")
    assert last["status"].to_dict() == {c: "failed" if c in (2, 4) else "ok" for c in range(6)}
    assert last.loc[[2, 4], "update_norm"].isna().all()
    assert (last["bytes_down"] > 0).all()  # they did receive the message
    assert sorted(events(tmp_path, "client_failed")["client_id"]) == [2, 2, 4, 4]
    assert study.runs["status"].tolist() == ["finished"]


@pytest.mark.parametrize(("bad", "fine"), [([1, 2, 3], True), ([1, 2, 3, 4], False)])
def test_a_quorum_has_to_succeed(toy: Toy, tmp_path: Path, bad: list[int], fine: bool):
    config = toy("Faulty", {"clients": bad}, failures__policy="drop", train__rounds=1)
    if fine:
        run(config, tmp_path)
        return
    with pytest.raises(QuorumError, match=r"2 of 6 clients succeeded.*quorum 0\.5 needs 3"):
        run(config, tmp_path)
    assert len(events(tmp_path, "client_failed")) == 4
    assert "toys.py" in fedsim.load(tmp_path).runs["error"].item()


def test_retry_tries_again_alone(toy: Toy, tmp_path: Path):
    options = {"clients": [3], "once": str(tmp_path / "mark")}
    config = toy("Faulty", options, failures__policy="retry", train__rounds=1)
    run(config, tmp_path / "runs")
    study = fedsim.load(tmp_path / "runs")
    assert study.rounds["num_clients_ok"].tolist() == [0, 6]
    assert study.clients.query("round == 1")["status"].tolist() == ["ok"] * 6
    (event,) = events(tmp_path / "runs", "client_failed").itertuples()
    assert (event.client_id, "ConnectionError" in event.message) == (3, True)
    assert events(tmp_path / "runs", "retry")["message"].tolist() == ["1 clients are tried again"]


def test_a_retried_client_counts_as_much_as_any_other(toy: Toy, tmp_path: Path):
    """A head's bits do not depend on the group, so the round is that of a run without trouble."""
    options = {"clients": [3], "once": str(tmp_path / "mark")}
    settings = {"failures__policy": "retry", "partition__scheme": "iid", "train__rounds": 1}
    folders = []
    for name, marked in (("retried", False), ("smooth", True)):
        if marked:
            assert (tmp_path / "mark").exists()
        folders.append(run(toy("Faulty", options, **settings), tmp_path / name))
    assert equal_results(*folders) == []


def test_retries_run_out(toy: Toy, tmp_path: Path):
    settings: dict[str, Any] = {"failures__policy": "retry", "failures__retries": 2}
    config = toy("Faulty", {"clients": [3]}, train__rounds=1, failures__quorum=0.5, **settings)
    run(config, tmp_path)
    assert len(events(tmp_path, "client_failed")) == 3
    assert fedsim.load(tmp_path).rounds["num_clients_failed"].tolist() == [0, 1]


def test_memory_trouble_is_an_event_and_a_mark_on_the_run(toy: Toy, tmp_path: Path):
    config = toy("Faulty", {"how": "memory", "at_most": 1}, train__rounds=1, engine__group_size=3)
    run(config, tmp_path)
    study = fedsim.load(tmp_path)
    assert study.runs["bit_comparable"].tolist() == [False]
    assert len(events(tmp_path, "out_of_memory")) == 4
    assert study.rounds["num_clients_ok"].tolist() == [0, 6]
    run(toy("Faulty", {}, train__rounds=1), tmp_path / "fine")
    assert fedsim.load(tmp_path / "fine").runs["bit_comparable"].tolist() == [True]


def test_what_happens_to_the_pool_is_told(toy: Toy, tmp_path: Path):
    config = toy("Drawing", train__rounds=2)
    run(config, tmp_path, ManyHosts(config, 2, 0))
    assert events(tmp_path, "pool")["round"].tolist() == [1, 2]


# --- resumption ----------------------------------------------------------------------------------


def resumed(config: Experiment, folder: Path, stops: list[int]) -> Path:
    """The run, abandoned without a word after some rounds and taken up by a new process."""
    for stop in [*stops, config.train.rounds]:
        made = federation(config, folder)
        made.setup()
        while made.round < stop:
            made.step()
        if made.finished and stop == config.train.rounds:
            made.finish()
        else:
            made.checkpoints.release()  # a killed process's lock is gone with it
    return folder


@pytest.mark.parametrize("name", ["Drawing", "Stateful", "Kept"])
@pytest.mark.parametrize("stops", [[0], [2], [1, 2, 3]])
def test_a_resumed_run_is_an_uninterrupted_one(
    toy: Toy, tmp_path: Path, name: str, stops: list[int]
):
    config = toy(name, train__rounds=4, train__participation=0.5)
    whole = run(config, tmp_path / "whole")
    other = resumed(config, tmp_path / "parts", stops)
    assert equal_results(whole, other) == []
    study = fedsim.load(other)
    assert study.runs["num_resumes"].tolist() == [len(stops)]
    assert events(other, "resumed")["round"].tolist() == stops


def test_a_round_that_was_cut_off_is_done_again(toy: Toy, tmp_path: Path):
    """Tables are written before the checkpoint; a kill between the two leaves rows behind."""
    config = toy("Stateful")
    whole = run(config, tmp_path / "whole")
    made = federation(config, tmp_path / "cut")
    made.setup()
    made.step()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    made.checkpoints.save = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        made.step()
    made.checkpoints.release()
    assert fedsim.load(tmp_path / "cut").rounds["round"].tolist() == [0, 1, 2]
    again = federation(config, tmp_path / "cut")
    assert again.setup()["round"] == 1
    assert fedsim.load(tmp_path / "cut").rounds["round"].tolist() == [0, 1]
    drive_on(again)
    assert equal_results(whole, tmp_path / "cut") == []


def drive_on(made: Federation) -> None:
    while not made.finished:
        made.step()
    made.finish()


def test_a_finished_run_can_be_started_again(features: Path, tmp_path: Path):
    config = experiment(features)
    run(config, tmp_path)
    before = fedsim.load(tmp_path).rounds
    run(config, tmp_path)
    after = fedsim.load(tmp_path)
    pd.testing.assert_frame_equal(after.rounds, before)
    assert after.runs["status"].tolist() == ["finished"]


def test_a_failed_run_goes_on_once_the_cause_is_gone(toy: Toy, tmp_path: Path):
    options = {"clients": [3], "once": str(tmp_path / "mark")}
    with pytest.raises(ClientError):
        run(toy("Faulty", options), tmp_path / "runs")
    run(toy("Faulty", options), tmp_path / "runs")
    (row,) = fedsim.load(tmp_path / "runs").runs.itertuples()
    assert (row.status, row.num_resumes) == ("finished", 1)
    assert pd.isna(row.error)


def test_resuming_with_other_threads_is_refused(features: Path, tmp_path: Path):
    config = experiment(features)
    made = federation(config, tmp_path)
    made.setup()
    made.checkpoints.release()
    # Threads are part of the run's id; a snapshot that got there otherwise is still refused.
    engine = config.engine.model_copy(update={"threads": 2})
    other = config.model_copy(update={"engine": engine})
    assert other.run_id != config.run_id
    folder = tmp_path / "checkpoints"
    snapshot = torch.load(folder / config.run_id / "round-000000.pt", weights_only=True)
    (folder / other.run_id).mkdir()
    torch.save(snapshot | {"run_id": other.run_id}, folder / other.run_id / "round-000000.pt")
    try:
        with pytest.raises(CheckpointError, match=r"engine\.threads=1; resume it with the same"):
            federation(other, tmp_path).setup()
    finally:
        torch.set_num_threads(1)


def test_a_run_in_use_is_left_alone(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoint, "_CLAIM_DEADLINE_S", 0.05)
    config = experiment(features)
    first = federation(config, tmp_path)
    first.setup()
    with pytest.raises(CheckpointError, match="another process"):
        run(config, tmp_path)
    assert fedsim.load(tmp_path).runs["status"].tolist() == ["running"]
    drive_on(first)
    assert fedsim.load(tmp_path).runs["status"].tolist() == ["finished"]


def test_interruptions_are_told_apart_from_failures(features: Path, tmp_path: Path):
    def watch(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            raise KeyboardInterrupt

    config = experiment(features)
    with pytest.raises(KeyboardInterrupt):
        drive(federation(config, tmp_path), watch)
    study = fedsim.load(tmp_path)
    assert study.runs["status"].tolist() == ["interrupted"]
    assert study.rounds["round"].tolist() == [0, 1]
    whole = run(config, tmp_path / "whole")
    assert equal_results(run(config, tmp_path), whole) == []


def test_client_states_survive_rounds_and_resumption(toy: Toy, tmp_path: Path):
    config = toy("Stateful", train__participation=0.5, train__rounds=4)
    resumed(config, tmp_path, [2])
    clients = fedsim.load(tmp_path).clients.query("round > 0")
    expected = clients.groupby("client_id").size().to_dict()
    (path,) = tmp_path.glob("checkpoints/*/round-000004.pt")
    states = ClientStates(path.parent)
    states.restore(torch.load(path, weights_only=True)["client_states"])
    assert {c: state.method["times"] for c, state in states.items()} == expected
    assert len(expected) > 3
    assert max(expected.values()) > 1


# --- what is written down ------------------------------------------------------------------------


def test_a_round_says_how_long_the_commit_before_it_took(features: Path, tmp_path: Path):
    rounds = fedsim.load(run(experiment(features), tmp_path)).rounds.sort_values("round")
    assert rounds["commit_s"].isna().tolist() == [True] + [False] * (len(rounds) - 1)
    assert (rounds["commit_s"][1:] > 0).all()


def test_partial_participation(features: Path, tmp_path: Path):
    config = experiment(features, train__participation=0.34, train__rounds=5)
    run(config, tmp_path)
    study = fedsim.load(tmp_path)
    assert study.rounds["num_clients_ok"].tolist() == [0] + [2] * 5
    assert study.rounds["num_clients_sampled"].tolist()[1:] == [2] * 5
    cohorts = study.clients.query("round > 0").groupby("round")["client_id"].apply(set)
    assert all(len(cohort) == 2 for cohort in cohorts)
    assert len({frozenset(cohort) for cohort in cohorts}) > 1


DRAWN = {
    "partition__scheme": "dirichlet_drawn",
    "partition__num_clients": 1_000_000,
    "partition__dirichlet_alpha": 0.5,
    "partition__samples_per_client": 12,
    "train__cohort_size": 5,
}


def test_a_cohort_of_a_million_clients_that_draw_their_samples(features: Path, tmp_path: Path):
    config = experiment(features, **DRAWN, engine__group_size=2, evaluation__personal=True)
    study = fedsim.load(run(config, tmp_path / "whole"))
    assert study.runs["num_clients"].item() == 1_000_000
    assert study.rounds["num_clients_ok"].tolist() == [0, 5, 5, 5]
    assert study.rounds["loss"].iloc[-1] < study.rounds["loss"].iloc[0]
    trained = study.clients.query("round > 0")
    assert trained["client_id"].max() > 1000
    assert set(trained["num_samples"]) <= {9, 10, 11}  # of twelve, a tenth or so held out
    shown = study.clients.query("round == 0")
    assert shown["client_id"].tolist() == list(range(1000))
    assert (
        study.events.query("kind == 'partition'")["message"].str.contains("1000 of 1000000").any()
    )
    of_clients = study.evaluations.query("scope == 'client'")
    assert {"global", "personal"} >= set(of_clients["model"])
    assert len(of_clients.query("model == 'global'")) == 1000
    assert equal_results(tmp_path / "whole", resumed(config, tmp_path / "killed", [1])) == []


def test_what_clients_of_a_population_keep_is_kept(toy: Toy, tmp_path: Path):
    config = toy("Stateful", **DRAWN, train__rounds=3)
    study = fedsim.load(run(config, tmp_path))
    (path,) = tmp_path.glob("checkpoints/*/round-000003.pt")
    states = ClientStates(path.parent)
    states.restore(torch.load(path, weights_only=True)["client_states"])
    assert set(states) == set(study.clients.query("round > 0")["client_id"])


def test_constants_and_encoder_are_downloaded_once(features: Path, tmp_path: Path):
    config = experiment(features, train__participation=0.5, train__rounds=5)
    made = federation(config, tmp_path)
    made.setup()
    made.data.meta["visual_bytes"] = 1000  # as if the features came from an encoder
    drive_on(made)
    clients = fedsim.load(tmp_path).clients.query("round > 0").sort_values("round")
    keys, constants = 4 * 8 * 4, (4 * 4 + 4 * 8) * 4  # text keys; values and text
    first = ~clients.duplicated("client_id")
    assert first.sum() > 3
    assert not first.all()
    expected = np.where(first, keys + constants + 1000, keys)
    assert clients["bytes_down"].tolist() == expected.tolist()
    assert set(clients["bytes_up"]) == {keys}
    rounds = fedsim.load(tmp_path).rounds
    sums = clients.groupby("round")["bytes_down"].sum()
    assert rounds["bytes_down"].tolist() == [0, *sums]
    assert rounds["bytes_up"].tolist() == [0] + [3 * keys] * 5


def test_downloads_are_remembered_over_a_resumption(features: Path, tmp_path: Path):
    config = experiment(features, train__rounds=4, train__participation=0.5)
    whole = run(config, tmp_path / "whole")
    assert equal_results(whole, resumed(config, tmp_path / "parts", [1, 3])) == []


def test_round_zero_describes_every_client(features: Path, tmp_path: Path):
    run(experiment(features, train__rounds=1), tmp_path)
    study = fedsim.load(tmp_path)
    start = study.clients.query("round == 0")
    assert start["client_id"].tolist() == list(range(6))
    assert start["status"].unique().tolist() == ["idle"]
    labels = np.load(features)["y_train"]
    counts = np.sum([np.asarray(c) for c in start["label_counts"]], axis=0)
    assert counts.tolist() == np.bincount(labels).tolist()
    trained = study.clients.query("round == 1").set_index("client_id")["num_samples"]
    assert (trained <= start.set_index("client_id")["num_samples"]).all()
    assert trained.sum() < len(labels)  # the hold-out is not trained on


def test_the_last_round_has_class_scores_and_predictions(features: Path, tmp_path: Path):
    run(experiment(features, train__rounds=2), tmp_path)
    study = fedsim.load(tmp_path)
    found = study.evaluations.query("split == 'test'")
    classes = found[found["scope"] == "class"]
    assert classes["round"].unique().tolist() == [2]
    assert set(classes["class_name"]) == {"ant", "bee", "cat", "dog"}
    accuracy = study.rounds.set_index("round")["accuracy"]
    predictions = study.predictions
    assert predictions["round"].unique().tolist() == [2]
    assert predictions["correct"].mean() == accuracy[2]
    assert predictions["label"].tolist() == np.load(features)["y_test"].tolist()
    overall = found.query("scope == 'global' and metric == 'accuracy'").set_index("round")["value"]
    assert overall.to_dict() == accuracy.to_dict()


def test_methods_without_training_are_one_evaluation(features: Path, tmp_path: Path):
    run(experiment(features, "zero_shot"), tmp_path)
    study = fedsim.load(tmp_path)
    assert study.rounds["round"].tolist() == [0]
    assert study.runs["num_rounds"].tolist() == [0]
    assert study.rounds["bytes_down"].tolist() == [0]
    assert len(study.predictions) == 40


def test_tuning_never_looks_at_test_data(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fedsim.engine import round as engine

    prepare = engine.prepare

    def poisoned(*args: Any, **settings: Any) -> Any:
        data = prepare(*args, **settings)
        for name in [name for name in data.arrays if name.startswith("test")]:
            del data.arrays[name]
        return data

    monkeypatch.setattr(engine, "prepare", poisoned)
    run(experiment(features, "fedavg_head", phase="tune"), tmp_path)
    study = fedsim.load(tmp_path)
    assert study.evaluations["split"].unique().tolist() == ["client_holdout"]
    assert study.rounds["split"].unique().tolist() == ["client_holdout"]
    assert study.runs["phase"].tolist() == ["tune"]
    assert len(study.predictions) == 0
    with pytest.raises(KeyError):  # a final run does look: the poison works
        run(experiment(features, "fedavg_head"), tmp_path)


def test_tune_and_final_hold_out_the_same_client_data(features: Path, tmp_path: Path):
    """Choosing on the hold-out is honest only if final runs never train on it."""
    for phase in ("tune", "final"):
        run(experiment(features, "fedavg_head", phase=phase, train__rounds=1), tmp_path / phase)
    shown = ["client_id", "num_samples", "loss_before"]
    tune, final = (
        fedsim.load(tmp_path / phase).clients.query("round == 1")[shown].reset_index(drop=True)
        for phase in ("tune", "final")
    )
    pd.testing.assert_frame_equal(tune, final)


def test_the_server_state_is_the_weighted_mean_of_the_clients(features: Path, tmp_path: Path):
    """One round of FedAvg against the same round computed client by client."""
    config = experiment(features, "fedavg_head", train__rounds=1)
    made = federation(config, tmp_path, LocalPool(config))
    made.setup()
    before = made._state["head"].double()
    made.step()
    from fedsim.engine.batching import Group, make_batches
    from fedsim.methods.training import train_one_by_one

    arrays, total, weights = made.data.arrays, torch.zeros(4, 8).double(), 0
    inputs = torch.from_numpy(np.array(arrays["train_inputs"]))
    labels = torch.from_numpy(np.array(arrays["train_labels"]))
    for client, rows in enumerate(made.data.holdings.fit):
        batches = make_batches(Group(0, (client,), (rows,)), inputs, labels, config.train, 0, 1)
        delta = train_one_by_one(
            {"head": before.float()}, lambda p, x: 10 * x @ p["head"].mT, batches
        )
        total += len(rows) * delta["head"][0].double()
        weights += len(rows)
    expected = before + total / weights
    torch.testing.assert_close(made._state["head"].double(), expected, rtol=1e-4, atol=1e-5)
    made.finish()
