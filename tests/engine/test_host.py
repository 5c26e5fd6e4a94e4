"""A host of clients: failures are isolated by name, and what is left is not touched by them."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config import Experiment
from fedsim.data.from_config import partition_clients
from fedsim.engine.batching import Group, make_groups
from fedsim.engine.host import ClientHost, Done, Work
from fedsim.inputs.prepare import prepare
from fedsim.methods import method_class
from fedsim.methods.cachefl import CacheFL
from fedsim.params import Product
from tests.helpers import experiment

Toy = Callable[..., Experiment]


class Bench:
    """One host, the groups of a cohort of six, and the message of round 1."""

    def __init__(self, config: Experiment) -> None:
        self.config, self.host = config, ClientHost(config)
        labels = np.asarray(self._arrays()["train_labels"])
        self.rows = partition_clients(labels, **config.for_partition()).fit
        text = torch.from_numpy(np.array(self._arrays()["text_features"]))
        self.message = {"head": text}

    def _arrays(self) -> dict[str, np.ndarray]:
        cls = method_class(self.config.use)
        return prepare(self.config, cls, torch.device("cpu"), synthetic=False).arrays

    def train(self, *groups: list[int], states: dict[int, Any] | None = None) -> Done:
        made = [
            Group(at, tuple(ids), tuple(self.rows[c] for c in ids)) for at, ids in enumerate(groups)
        ]
        samples, size = sum(len(rows) for rows in self.rows), len(self.rows)
        return self.host.train(Work(1, made, states or {}, samples, size), self.message)


RESULTS = ("client_id", "weight", "update_norm", "loss_before", "loss_after", "accuracy_after")
RESULTS += ("bytes_up", "train_flops", "num_samples", "num_steps", "accuracy_before")


def results(done: Done) -> dict[int, dict[str, Any]]:
    return {row["client_id"]: {name: row[name] for name in RESULTS} for row in done.rows}


def same(one: Done, other: Done) -> None:
    assert results(one) == results(other)
    assert one.total.weight == other.total.weight
    assert one.total.num_clients == other.total.num_clients
    assert set(one.total.sums) == set(other.total.sums)
    assert all(torch.equal(one.total.sums[k], other.total.sums[k]) for k in one.total.sums)


def test_rows_say_what_each_client_did(features: Path):
    bench = Bench(experiment(features, "fedavg_head"))
    done = bench.train([0, 1, 2], [3])
    assert [row["client_id"] for row in done.rows] == [0, 1, 2, 3]
    for row in done.rows:
        rows = bench.rows[row["client_id"]]
        assert row["num_samples"] == row["weight"] == len(rows)
        assert row["num_steps"] == 2 * -(-len(rows) // 4)
        assert row["bytes_up"] == 4 * 8 * 4
        assert row["loss_after"] < row["loss_before"]
        assert row["status"] == "ok"
        assert row["update_norm"] > 0
        assert row["peak_resident_bytes"] > 0
    assert done.failures == []
    assert done.total.num_clients == 4


def test_flops_are_those_of_the_products(features: Path):
    """Forward 2*N*d a sample, and the gradient of the weights as much again."""
    done = Bench(experiment(features, "fedavg_head")).train([0, 1])
    for row in done.rows:
        assert row["train_flops"] == (2 + 2) * 4 * 8 * row["num_samples"] * 2


@pytest.mark.parametrize("how", ["raise", "nan", "inf", "weight"])
@pytest.mark.parametrize("bad", [[2], [0], [1, 3]])
def test_survivors_are_as_if_the_failed_had_not_been_there(toy: Toy, how: str, bad: list[int]):
    done = Bench(toy("Faulty", {"clients": bad, "how": how})).train([0, 1, 2, 3], [4, 5])
    assert sorted(f.client_id for f in done.failures) == bad
    rest = [c for c in range(4) if c not in bad]
    assert sorted(results(done)) == [*rest, 4, 5]
    if how == "raise":  # trained again without them; refused updates are only left out
        same(done, Bench(toy("Faulty", {"how": how})).train(rest, [4, 5]))
    else:
        whole = Bench(toy("Faulty", {"how": how})).train([0, 1, 2, 3], [4, 5])
        found = results(whole)
        assert results(done) == {c: found[c] for c in [*rest, 4, 5]}


def test_failures_name_the_cause_with_its_traceback(toy: Toy):
    (failure,) = Bench(toy("Faulty", {"clients": [2]})).train([0, 1, 2]).failures
    assert failure.client_id == 2
    assert failure.reason.startswith("ValueError: client 2 holds bad data")
    assert "Traceback" in failure.reason
    assert "toys.py" in failure.reason
    assert failure.node


def test_refused_updates_say_what_was_wrong(toy: Toy):
    reasons = {
        "nan": "its update was refused: 1 of 32 values of 'head' are NaN or infinite",
        "inf": "its update was refused: 1 of 32 values of 'head' are NaN or infinite",
        "weight": "its update was refused: its weight is -1",
    }
    for how, reason in reasons.items():
        (failure,) = Bench(toy("Faulty", {"clients": [1], "how": how})).train([0, 1, 2]).failures
        assert (failure.client_id, failure.reason) == (1, reason)


def test_all_of_a_group_may_fail(toy: Toy):
    done = Bench(toy("Faulty", {"clients": [0, 1, 2]})).train([0, 1, 2])
    assert [f.client_id for f in done.failures] == [0, 1, 2]
    assert done.rows == []
    assert done.total.mean() == {}
    nan = Bench(toy("Faulty", {"clients": [0, 1], "how": "nan"})).train([0, 1])
    assert [f.client_id for f in nan.failures] == [0, 1]
    assert nan.total.mean() == {}


def test_clients_that_only_fail_together_are_all_blamed(toy: Toy):
    done = Bench(toy("Faulty", {"how": "together"})).train([0, 1, 2], [3])
    assert [f.client_id for f in done.failures] == [0, 1, 2]
    assert all("only alone, please" in f.reason for f in done.failures)
    assert list(results(done)) == [3]


def test_no_client_is_both_fine_and_failed(toy: Toy):
    """A method that breaks the contract after training, here by forgetting client states."""
    done = Bench(toy("Faulty", {"how": "states"})).train([0, 1, 2])
    assert [f.client_id for f in done.failures] == [0, 1, 2]
    assert done.rows == []
    assert done.total.mean() == {}
    assert done.total.num_clients == 0


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_out_of_memory_splits_groups_and_says_so(toy: Toy, fits: int):
    options = {"how": "memory", "at_most": fits}
    done = Bench(toy("Faulty", options)).train([0, 1, 2, 3, 4])
    assert done.failures == []
    assert sorted(results(done)) == [0, 1, 2, 3, 4]
    assert done.backoffs[0].startswith("out of memory with 5 clients of group 0")
    assert len(done.backoffs) == {1: 4, 2: 2, 3: 1}[fits]
    halves = {1: [[0], [1], [2], [3], [4]], 2: [[0, 1], [2], [3, 4]], 3: [[0, 1], [2, 3, 4]]}
    same(done, Bench(toy("Faulty")).train(*halves[fits]))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, ValueError])
def test_what_failed_holds_no_memory_when_its_parts_are_tried(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    bench = Bench(toy("Faulty"))
    trained, made, alive = bench.host.method.client_update, list[Any](), list[int]()

    def greedy(message: Any, batches: Any, states: Any, rng: Any) -> Any:
        alive.append(sum(ref() is not None for ref in made))
        activations = torch.zeros(8)
        made.append(weakref.ref(activations))
        if len(batches.client_ids) > 2:
            raise error("too much")
        return trained(message, batches, states, rng)

    monkeypatch.setattr(bench.host.method, "client_update", greedy)
    bench.train([0, 1, 2, 3])
    assert alive == [0] * len(alive)
    assert len(alive) > 2


def test_a_client_that_never_fits_fails_alone(toy: Toy):
    options = {"how": "memory", "at_most": 9, "clients": [3]}
    done = Bench(toy("Faulty", options)).train([0, 1, 2, 3])
    assert [f.client_id for f in done.failures] == [3]
    assert "OutOfMemoryError" in done.failures[0].reason
    assert sorted(results(done)) == [0, 1, 2]


def test_states_come_back_for_those_that_keep_one(toy: Toy):
    bench = Bench(toy("Stateful"))
    first = bench.train([0, 1], [2])
    assert sorted(first.states) == [0, 1, 2]
    assert first.states[1].method["times"] == 1
    assert first.states[1].method["nested"]["name"] == "client 1"
    second = bench.train([0, 1], [2], states={1: first.states[1]})
    assert {c: state.method["times"] for c, state in second.states.items()} == {0: 1, 1: 2, 2: 1}
    assert first.states[1].method["times"] == 1
    plain = Bench(toy("Faulty")).train([0, 1])
    assert plain.states == {}


def test_a_failed_client_leaves_no_state(toy: Toy):
    done = Bench(toy("Faulty", {"clients": [1]})).train([0, 1])
    assert 1 not in done.states


def test_kept_updates_are_one_per_client(toy: Toy):
    done = Bench(toy("Kept")).train([3, 0], [2])
    assert [client for client, _ in done.kept] == [3, 0, 2]
    for client, update in done.kept:
        assert update.delta["head"].shape == (1, 4, 8)
        norm = update.delta["head"].double().norm().item()
        assert norm == pytest.approx(results(done)[client]["update_norm"])
        assert update.weight.tolist() == [results(done)[client]["weight"]]
    assert done.total.mean() == {}


def test_measuring_clients_is_optional(features: Path, toy: Toy):
    config = experiment(features, "fedavg_head", evaluation__client_metrics=False)
    for bench in (Bench(config), Bench(toy("NoLogits"))):
        (row, *_) = bench.train([0, 1]).rows
        assert "loss_before" not in row
        assert row["status"] == "ok"


def test_partial_sums_of_hosts_merge_to_the_same_bits(toy: Toy):
    config = toy("Drawing")
    whole = Bench(config).train([0, 1], [2, 3], [4, 5]).total
    first, second = Bench(config).train([4, 5]).total, Bench(config).train([2, 3], [0, 1]).total
    first.merge(second)
    assert torch.equal(whole.mean()["head"], first.mean()["head"])


def test_clients_never_hold_the_servers_data(toy: Toy):
    bench = Bench(toy("Inspecting"))
    assert bench.train([0, 1]).failures == []
    assert bench.host.method.task.synthetic is None
    assert bench.host.method.task.public is None


class DualBench(Bench):
    """The same with keys in dual form; `more` are settings."""

    def __init__(self, features: Path, **more: Any) -> None:
        super().__init__(experiment(features, "cache_text", cache__form="dual", **more))
        task = self.host.method.task
        state = self.host.method.setup(task, torch.Generator())
        self.message = self.host.method.constants(state) | self.host.method.message(state)


def test_keys_in_dual_form_are_formed_only_for_who_asks(
    features: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, summed = (
        DualBench(features, evaluation__client_metrics=metrics) for metrics in (True, False)
    )
    formed = asked.train([0, 1, 2], [3])
    monkeypatch.setattr(Product, "formed", lambda self: pytest.fail("nobody asked"))
    factored = summed.train([0, 1, 2], [3])
    assert factored.failures == formed.failures == []
    for one, other in zip(factored.rows, formed.rows, strict=True):
        assert one["update_norm"] == pytest.approx(other["update_norm"], rel=1e-5)
        assert one["update_norm"] > 0
        assert one["bytes_up"] == other["bytes_up"] == 4 * summed.message["keys"].numel()
        assert one["train_flops"] == other["train_flops"] > 0
    torch.testing.assert_close(factored.total.mean(), formed.total.mean(), rtol=1e-5, atol=1e-7)


def test_a_client_in_dual_form_that_diverges_is_refused_by_name(
    features: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = DualBench(features, evaluation__client_metrics=False)
    alone = bench.train([1, 2])
    train = CacheFL.client_update

    def spoilt(*args: Any) -> Any:
        update, states = train(*args)
        update.products["keys"].left[0, 0, 1] = float("inf")
        return update, states

    monkeypatch.setattr(CacheFL, "client_update", spoilt)
    done = bench.train([0, 1, 2])
    assert [failure.client_id for failure in done.failures] == [0]
    assert "values of 'keys' are NaN or infinite" in done.failures[0].reason
    assert [row["client_id"] for row in done.rows] == [1, 2]
    torch.testing.assert_close(done.total.mean(), alone.total.mean(), rtol=1e-5, atol=1e-7)


def test_the_groups_of_a_cohort_are_whole(features: Path):
    bench = Bench(experiment(features, "fedavg_head", engine__group_size=4))
    cohort = [5, 3, 1, 0, 2, 4]
    groups = make_groups(cohort, bench.rows, bench.config.group_size)
    ordered = sorted(cohort, key=lambda client: -len(bench.rows[client]))
    assert [group.client_ids for group in groups] == [tuple(ordered[:4]), tuple(ordered[4:])]
