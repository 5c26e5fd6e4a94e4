"""Classic federated learning against cases that can be computed by hand.

Quadratic clients `a_k / 2 (w - b_k)^2` stand in for networks: local training, the server's step and
what is sent are the methods' own, and where they end up is known.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fedsim
from fedsim.config import Experiment
from fedsim.config.sections import TrainConfig
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.client_states import ClientStates
from fedsim.errors import ConfigError
from fedsim.inputs.preflight import preflight
from fedsim.methods import build_method, method_class
from fedsim.methods.base import Batch, Batches, Labelled, Method, Received, State, Update
from fedsim.methods.moon import contrastive
from fedsim.methods.scaffold import CONTROL
from fedsim.methods.training import effective_steps, train_centrally
from fedsim.params import ExactSum, Params, add
from tests.helpers import batches_of, experiment, local_data, rngs, run, tiny_task

LR = 0.1
SHAPE = (1, 8, 8)
TRAINED: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"train__proximal_mu": 0.1},
    "scaffold": {},
    "fednova": {},
    "moon": {},
}
"""Methods with clients that send something."""


def built(method: str, **settings: Any) -> Method:
    given: dict[str, Any] = {
        "models__classifier": {"name": "convnet", "width": 8, "depth": 2},
        "train__momentum": 0.0,
        "train__lr": LR,
    }
    made = experiment("digits", method, **(given | settings))
    return build_method(made.for_method(), tiny_task(made, image_shape=SHAPE))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- quadratic clients ---------------------------------------------------------------------------


class Quadratics:
    """Clients with losses `a_k / 2 (w - b_k)^2`, and a method at work on them.

    `sizes` are n_k; with `batch_size` 1 a client takes n_k steps per epoch.
    """

    def __init__(
        self, method: str, a: Sequence[float], b: Sequence[float], sizes: Sequence[int], **own: Any
    ) -> None:
        self.method = built(method, **({"train__batch_size": 64} | own))
        start = SimpleNamespace(init=lambda generator: {"w": torch.zeros(1).double()})
        self.method.__dict__["net"] = start
        self.method.__dict__["loss"] = self._loss
        self.inputs = torch.tensor(list(zip(a, b, strict=True))).double()
        self.inputs = self.inputs.repeat_interleave(torch.tensor(sizes), dim=0)
        self.labels = torch.zeros(len(self.inputs), dtype=torch.long)
        self.rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        self.a, self.b = np.array(a), np.array(b)
        self.p = np.array(sizes) / sum(sizes)
        self.state = self.method.setup(self.method.task, rng())
        self.kept: dict[int, State] = {}

    @staticmethod
    def _loss(message: Params, batches: Batches, client_state: Sequence[State]) -> Any:
        def loss(params: Params, batch: Batch) -> Tensor:
            a, b = batch.x.unbind(-1)
            each = a / 2 * (params["w"] - b).square() * batch.mask
            return each.sum(1) / batch.mask.sum(1).clamp_min(1)

        return loss

    def round(self, number: int, clients: Sequence[int] | None = None) -> None:
        ids = tuple(range(len(self.rows))) if clients is None else tuple(clients)
        method = self.method
        batches = batches_of(method.config.train, self.rows, self.inputs, self.labels, ids)
        states = [self.kept.get(c, {}) for c in batches.client_ids]
        message = method.message(self.state)
        update, states_now = method.client_update(message, batches, states, rngs(batches))
        self.kept |= dict(zip(batches.client_ids, states_now, strict=True))
        total = ExactSum(len(self.inputs), len(self.rows))
        assert total.refused(update.delta, update.weight) == []
        total.add(update.delta, update.weight)  # a ghost weighs nothing
        share = float(batches.num_samples.sum()) / len(self.inputs)
        received = Received(total.mean(), num_clients=len(ids), round=number, share=share)
        self.state = method.aggregate(self.state, received)

    def end(self, rounds: int = 100, cohorts: Sequence[Sequence[int]] | None = None) -> float:
        for number in range(1, rounds + 1):
            self.round(number, None if cohorts is None else cohorts[number % len(cohorts)])
        return self.w

    @property
    def w(self) -> float:
        return self.state.get("weights", self.state)["w"].item()

    @property
    def optimum(self) -> float:
        """Where the weighted sum of all losses is least."""
        return float((self.p * self.a * self.b).sum() / (self.p * self.a).sum())

    def drawn(self, steps: np.ndarray, over: np.ndarray | float = 1.0) -> float:
        """The fixed point of averages of what so many plain steps do, divided by `over`."""
        pull = self.p * (1 - (1 - LR * self.a) ** steps) / over
        return float((pull * self.b).sum() / pull.sum())


UNEQUAL: dict[str, Any] = {"a": (0.5, 4.0, 2.0), "b": (0.0, 1.0, -2.0), "sizes": (3, 6, 2)}


@pytest.mark.parametrize("epochs", [1, 5])
def test_fedavg_is_biased_by_several_local_steps(epochs: int):
    """w = sum p s b / sum p s with s_k = 1 - (1 - lr a_k)^E; the optimum only for E = 1."""
    clients = Quadratics("fedavg", **UNEQUAL, train__local_epochs=epochs)
    assert clients.end() == pytest.approx(clients.drawn(np.full(3, epochs)), abs=1e-6)
    distance = abs(clients.w - clients.optimum)
    assert distance < 1e-6 if epochs == 1 else distance > 0.05


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("batch_size", [64, 1])  # as many steps for all; as many as samples
@pytest.mark.parametrize("cohorts", [None, [(0, 1), (2, 0), (1, 2)]], ids=["all", "two of three"])
def test_scaffold_finds_the_optimum(
    momentum: float, batch_size: int, cohorts: list[tuple[int, int]] | None
):
    own = {"train__local_epochs": 3, "train__momentum": momentum, "train__batch_size": batch_size}
    clients = Quadratics("scaffold", **UNEQUAL, **(own | {"train__lr": 0.05}))
    biased = Quadratics("fedavg", **UNEQUAL, **(own | {"train__lr": 0.05}))
    assert clients.end(150, cohorts) == pytest.approx(clients.optimum, abs=1e-4)
    if cohorts is None and batch_size == 64:
        assert abs(biased.end() - clients.optimum) > 0.02
    # At the optimum every client's variate is its gradient there, and theirs is their mean.
    gradients = clients.a * (clients.optimum - clients.b)
    own_variates = [clients.kept[c]["w"].item() for c in range(3)]
    np.testing.assert_allclose(own_variates, gradients, atol=1e-2)
    mean = float((clients.p * own_variates).sum())
    assert clients.state["control"]["w"].item() == pytest.approx(mean, abs=1e-5)


def test_scaffold_takes_the_steps_of_the_paper():
    """Two rounds with two local steps each, in plain arithmetic."""
    a, b = np.array([1.0, 3.0]), np.array([2.0, -1.0])
    clients = Quadratics("scaffold", a.tolist(), b.tolist(), (5, 5), train__local_epochs=2)
    x, c, own = 0.0, 0.0, np.zeros(2)
    for number in (1, 2):
        y = np.full(2, x)
        for _ in range(2):
            y = y - LR * (a * (y - b) - own + c)
        new = own - c + (x - y) / (2 * LR)
        x, c, own = x + (y - x).mean(), c + (new - own).mean(), new
        clients.round(number)
        assert clients.w == pytest.approx(x, rel=1e-6)
        assert clients.state["control"]["w"].item() == pytest.approx(c, rel=1e-6)
        assert [clients.kept[k]["w"].item() for k in (0, 1)] == pytest.approx(own, rel=1e-6)


def test_fednova_corrects_unequal_numbers_of_steps():
    sizes = np.array([2, 12])
    own: dict[str, Any] = {"a": (1.0, 1.0), "b": (0.0, 1.0), "sizes": (2, 12)}
    one = {"train__batch_size": 1, "train__local_epochs": 2}
    average, nova = Quadratics("fedavg", **own, **one), Quadratics("fednova", **own, **one)
    assert average.end() == pytest.approx(average.drawn(2 * sizes), abs=1e-6)
    assert nova.end() == pytest.approx(nova.drawn(2 * sizes, over=2 * sizes), abs=1e-6)
    # With short steps FedNova's fixed point becomes the optimum, and FedAvg's does not.
    short = one | {"train__lr": 4e-3}
    average, nova = Quadratics("fedavg", **own, **short), Quadratics("fednova", **own, **short)
    assert average.optimum == pytest.approx(12 / 14)
    assert nova.end() == pytest.approx(nova.optimum, abs=0.01)
    assert average.end() > average.optimum + 0.1


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.7)])
def test_effective_steps_are_the_papers(momentum: float, mu: float):
    train = TrainConfig(lr=0.05, momentum=momentum, proximal_mu=mu)
    tau = torch.tensor([0, 1, 2, 17])
    t = tau.double()
    expected = {
        (0.0, 0.0): t,
        (0.9, 0.0): (t - 0.9 * (1 - 0.9**t) / (1 - 0.9)) / (1 - 0.9),
        (0.0, 0.7): (1 - (1 - 0.05 * 0.7) ** t) / (0.05 * 0.7),
    }[momentum, mu]
    torch.testing.assert_close(effective_steps(train, tau).double(), expected, rtol=1e-6, atol=0)


def test_fednova_is_fedavg_where_all_take_as_many_steps():
    own = {"train__local_epochs": 3, "train__momentum": 0.9}
    average, nova = Quadratics("fedavg", **UNEQUAL, **own), Quadratics("fednova", **UNEQUAL, **own)
    for number in (1, 2, 3):
        average.round(number)
        nova.round(number)
        assert nova.w == pytest.approx(average.w, rel=1e-6)


def test_fedprox_ends_where_proximal_points_balance():
    """Solved to the end, client k is at (a b + mu w) / (a + mu): sum p a (b - w) / (a + mu) = 0."""
    mu = 2.0
    own = {"train__local_epochs": 60, "train__proximal_mu": mu}
    clients = Quadratics("fedprox", **UNEQUAL, **own)
    pull = clients.p * clients.a / (clients.a + mu)
    expected = float((pull * clients.b).sum() / pull.sum())
    assert clients.end(40) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - clients.optimum) > 0.05


# --- MOON ----------------------------------------------------------------------------------------


def test_the_contrast_is_the_papers():
    z, near, far = (torch.randn(5, 3, generator=rng(seed)).double() for seed in range(3))

    def cosine(x: Tensor, y: Tensor) -> np.ndarray:
        x, y = x.numpy(), y.numpy()
        return (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)

    one, two = np.exp(cosine(z, near) / 0.5), np.exp(cosine(z, far) / 0.5)
    expected = -np.log(one / (one + two))
    np.testing.assert_allclose(contrastive(z, near, far, 0.5).numpy(), expected, rtol=1e-12)


def moon_loss(mu: float, previous: bool) -> tuple[Any, Params, Batches]:
    """MOON's local loss on a network of doubles, and the weights to take it at."""
    method = built("moon", options={"mu": mu})
    message = {k: v.double() for k, v in method.setup(method.task, rng()).items()}
    inputs, labels, rows = local_data((4, 3), shape=SHAPE)
    batches = batches_of(method.config.train, rows, inputs.double() * 4, labels)
    states: list[State] = [{}, {}]
    if previous:
        other = built("moon").setup(method.task, rng(1))
        states = [{k: v.double() for k, v in other.items()}, {}]
    loss = method.loss(message, batches, states)  # type: ignore[attr-defined]
    third = built("moon").setup(method.task, rng(2))
    weights = {k: v.double().repeat(2, *[1] * v.dim()) for k, v in third.items()}
    return loss, weights, batches


def test_moons_gradient_is_that_of_finite_differences():
    loss, weights, batches = moon_loss(5.0, previous=True)
    (batch, *_) = batches
    for value in weights.values():
        value.requires_grad_()
    names = ["body.0.weight", "body.4.weight", "head.weight"]
    gradients = torch.autograd.grad(loss(weights, batch).sum(), [weights[k] for k in names])
    step = 1e-5
    for name, gradient in zip(names, gradients, strict=True):
        for at in range(0, gradient.numel(), max(1, gradient.numel() // 7)):
            moved = torch.zeros(gradient.numel()).double()
            moved[at] = step
            ahead = weights | {name: weights[name].detach() + moved.view_as(gradient)}
            behind = weights | {name: weights[name].detach() - moved.view_as(gradient)}
            with torch.no_grad():
                slope = (loss(ahead, batch) - loss(behind, batch)).sum().item() / (2 * step)
            assert gradient.flatten()[at].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_moon_pulls_only_who_has_a_previous_model():
    (with_term, weights, batches), (without, *_) = moon_loss(5.0, True), moon_loss(0.0, True)
    (batch, *_) = batches
    for value in weights.values():
        value.requires_grad_()
    (a,), (b,) = (
        torch.autograd.grad(loss(weights, batch).sum(), [weights["body.0.weight"]])
        for loss in (with_term, without)
    )
    assert not torch.allclose(a[0], b[0], rtol=1e-3)
    torch.testing.assert_close(a[1], b[1])  # its first participation: nothing to contrast with


def test_moons_clients_keep_the_model_they_trained():
    method = built("moon")
    state = method.setup(method.task, rng())
    update, kept = step(method, state)
    for c, own in enumerate(kept):
        assert set(own) == set(state)
        for name, value in own.items():
            torch.testing.assert_close(value, state[name] + update.delta[name][c])
    again, _ = step(method, state, kept)
    assert not torch.equal(again.delta["body.0.weight"], update.delta["body.0.weight"])


# --- FedAvg, its server steps and local losses ---------------------------------------------------


def step(
    method: Method, state: State, kept: Sequence[State] = ({}, {}, {}), sizes: Any = (9, 1, 14)
) -> tuple[Update, Sequence[State]]:
    inputs, labels, rows = local_data(sizes, shape=SHAPE)
    batches = batches_of(method.config.train, rows, inputs * 4, labels)
    return method.client_update(method.message(state), batches, kept, rngs(batches))


@pytest.mark.parametrize(
    "optimizer", ["momentum", "adam", "yogi"], ids=["fedavgm", "fedadam", "fedyogi"]
)
def test_server_optimisers_take_the_papers_steps(tmp_path: Path, optimizer: str):
    """Two rounds: what each round's average change is, a plain FedAvg from there tells."""
    beta, beta2, lr, epsilon = 0.9, 0.99, 0.5 if optimizer == "momentum" else 0.01, 1e-3
    server = {"server__optimizer": optimizer, "server__lr": lr}
    made = digits("fedavgm", use="fedavg", train__rounds=2, **server)
    run(made, tmp_path)
    rounds = {n: weights_of(made, tmp_path / "each", n) for n in (0, 1, 2)}
    first = {k: v - rounds[0][k] for k, v in plain_round(made, tmp_path).items()}
    moment = {k: d if optimizer == "momentum" else (1 - beta) * d for k, d in first.items()}
    second = {k: (1 - beta2) * d.square() for k, d in first.items()}
    for name, start in rounds[0].items():
        change = moment[name]
        if optimizer != "momentum":
            change = moment[name] / (second[name].sqrt() + epsilon)
        torch.testing.assert_close(rounds[1][name], start + lr * change, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(rounds[2][k], rounds[1][k]) for k in rounds[1])


def plain_round(like: Experiment, folder: Path) -> Params:
    """The weights after one round of plain FedAvg in the same cell."""
    return weights_of(digits("fedavg", train__rounds=1), folder / "plain", 1)


def weights_of(made: Experiment, folder: Path, round: int) -> Params:
    """The weights after `round` rounds: a run of just so many."""
    train = made.train.model_copy(update={"rounds": round})
    short = made.model_copy(update={"train": train})
    run(short, folder / str(round))
    snapshot = CheckpointFolder(folder / str(round), short.run_id).latest()
    assert snapshot is not None
    return snapshot["state"]


def test_fedlc_calibrates_logits_by_the_clients_label_counts():
    """One step on a full batch: minus lr times the gradient of the paper's loss."""
    tau = 0.7
    fedlc = {"train__logit_adjustment": "fedlc", "train__logit_adjustment_tau": tau}
    method = built("fedavg", **fedlc, train__batch_size=64, train__local_epochs=1)
    state = method.setup(method.task, rng())
    update, _ = step(method, state)
    inputs, labels, rows = local_data((9, 1, 14), shape=SHAPE)
    for c, mine in enumerate(rows):
        weights = {k: v.clone().requires_grad_() for k, v in state.items()}
        counts = torch.bincount(labels[mine], minlength=4).float().clamp_min(0.5)
        logits = method.predictor(weights)(inputs[mine] * 4) - tau * counts ** (-1 / 4)
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, labels[mine]), list(weights.values())
        )
        for (name, value), gradient in zip(weights.items(), gradients, strict=True):
            assert value.shape == gradient.shape
            torch.testing.assert_close(update.delta[name][c], -LR * gradient, rtol=1e-3, atol=1e-5)


# --- what all of them hold to --------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_clients_bits_do_not_depend_on_who_its_neighbours_are(name: str, count: int):
    method = built(name, **TRAINED[name], train__local_epochs=2, train__batch_size=4)
    state = method.setup(method.task, rng())
    inputs, labels, rows = local_data((10,) * 8, shape=SHAPE)

    def changes(ids: Sequence[int], kept: dict[int, State]) -> tuple[Params, dict[int, State]]:
        batches = batches_of(method.config.train, rows, inputs * 4, labels, ids)
        states = [kept.get(c, {}) for c in ids]
        update, new = method.client_update(method.message(state), batches, states, rngs(batches))
        return update.delta, dict(zip(ids, new, strict=True))

    _, kept = changes(range(8), {})
    others = [c for c in range(8) if c != 5]
    for at in (0, count - 1):
        found = []
        for neighbours in (others[: count - 1], others[1 - count :]):
            neighbours.insert(at, 5)
            delta, states = changes(neighbours, kept)
            found.append(
                {k: v[at] for k, v in delta.items()}
                | {f"kept {k}": v for k, v in states[5].items()}
            )
        assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
        assert any(v.any() for v in found[0].values())


@pytest.mark.parametrize("name", TRAINED)
def test_ghosts_send_nothing(name: str):
    method = built(name, **TRAINED[name])
    state = method.setup(method.task, rng())
    if name == "scaffold":  # a correction that is not zero
        state["control"] = {k: torch.ones_like(v) for k, v in state["control"].items()}
    inputs, labels, rows = local_data((10, 4), shape=SHAPE)
    batches = batches_of(method.config.train, rows, inputs, labels, [0])
    update, _ = method.client_update(method.message(state), batches, [{}, {}], rngs(batches))
    assert update.weight.tolist() == [10, 0]
    assert all(not value[1].any() for value in update.delta.values())
    assert any(value[0].any() for value in update.delta.values())


@pytest.mark.parametrize("name", TRAINED)
def test_when_every_client_fails_nothing_changes(name: str):
    method = built(name, **TRAINED[name])
    state = method.setup(method.task, rng())
    after = method.aggregate(state, Received({}, round=1))
    x = torch.randn(3, *SHAPE, generator=rng())
    assert torch.equal(method.predictor(after)(x), method.predictor(state)(x))


def test_all_methods_of_a_cell_start_from_the_same_weights():
    x, found = torch.randn(3, *SHAPE, generator=rng()), []
    for name in (*TRAINED, "local_only_classifier", "centralised_classifier"):
        method = built(name, **TRAINED.get(name, {}))
        found.append(method.predictor(method.setup(method.task, rng()))(x))
    assert all(torch.equal(logits, found[0]) for logits in found)


def test_scaffold_sends_weights_and_variates():
    method = built("scaffold")
    state = method.setup(method.task, rng())
    update, kept = step(method, state)
    weights = set(state["weights"])
    assert set(update.delta) == weights | {f"{CONTROL}/{name}" for name in weights}
    assert update.change is not None
    assert set(update.change) == weights
    for c in range(3):
        for name in weights:
            torch.testing.assert_close(kept[c][name], update.delta[f"{CONTROL}/{name}"][c])


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "own", "said"),
    [
        ("fedprox", {}, "without its proximal term is fedavg"),
        ("scaffold", {"train__optimizer": "adamw"}, "set train.optimizer to sgd"),
        ("fednova", {"train__optimizer": "adamw"}, "set train.optimizer to sgd"),
        ("moon", {"options": {"temperature": 0.0}}, "temperature"),
        ("local_only_classifier", {"options": {"model": "head"}}, "has no options"),
    ],
)
def test_settings_with_which_a_method_is_not_itself(method: str, own: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        built(method, **own)


@pytest.mark.parametrize("method", ["scaffold", "fednova"])
def test_server_optimisers_are_for_plain_averages(method: str):
    with pytest.raises(ConfigError, match=r"server.optimizer is for methods whose server averages"):
        preflight([digits(method, server__optimizer="adam")])


# --- whole runs ----------------------------------------------------------------------------------


def digits(method: str, **own: Any) -> Experiment:
    given: dict[str, Any] = {
        "models__classifier": {"name": "convnet", "width": 8, "depth": 2},
        "data__max_train_samples": 120,
        "partition__num_clients": 7,
        "partition__dirichlet_alpha": 0.05,
        "train__momentum": 0.0,
        "train__lr": LR,
        "train__batch_size": 16,
    }
    return experiment("digits", method, **(given | own))


@pytest.mark.parametrize("name", [*TRAINED, "local_only_classifier", "centralised_classifier"])
def test_partial_participation_and_missing_classes(tmp_path: Path, name: str):
    made = digits(name, **TRAINED.get(name, {}), train__participation=0.3, train__rounds=4)
    preflight([made])
    study = fedsim.load(run(made, tmp_path))
    clients = study.clients.query("round > 0")
    pooled = method_class(name).pooled
    assert len(clients) == 4 * (1 if pooled else 2)
    counts = np.stack(study.clients.query("round == 0")["label_counts"])
    assert (counts == 0).any(1).all(), "every client lacks a class"
    assert study.rounds["loss"].notna().all()
    assert np.isfinite(study.rounds["loss"]).all()
    assert (clients["update_norm"] > 0).all() or name == "local_only_classifier"
    if name != "local_only_classifier":  # which sends nothing to measure it by
        assert clients["loss_after"].sum() < clients["loss_before"].sum()


@pytest.mark.parametrize("name", ["scaffold", "moon"])
def test_what_clients_keep_survives_a_kill(tmp_path: Path, name: str):
    from tests.helpers import federation

    made = digits(name, train__rounds=3, train__participation=0.5)
    whole = federation(made, tmp_path / "whole")
    whole.setup()
    while not whole.finished:
        whole.step()
    whole.finish()
    begun = federation(made, tmp_path / "killed")
    begun.setup()
    begun.step()
    begun.step()
    begun.abort("interrupted")
    again = federation(made, tmp_path / "killed")
    again.setup()
    again.step()
    again.finish()
    folders = [CheckpointFolder(tmp_path / f, made.run_id) for f in ("whole", "killed")]
    ends = [folder.latest() for folder in folders]
    assert ends[0] is not None
    assert ends[1] is not None
    states = [ClientStates(folder.path) for folder in folders]
    for kept, end in zip(states, ends, strict=True):
        kept.restore(end["client_states"])
    assert set(states[0]) == set(states[1])
    for client, own in states[0].items():
        assert all(torch.equal(v, states[1][client].method[k]) for k, v in own.method.items())
    x = torch.randn(3, *SHAPE, generator=rng())
    method = again.method
    logits = [method.predictor(end["state"])(x) for end in ends if end]
    assert torch.equal(*logits)


# --- the server's own images ---------------------------------------------------------------------


def images_of_classes(per_class: int = 6) -> Labelled:
    """A bar per class, at a row of its own, as uint8."""
    labels = torch.arange(4).repeat_interleave(per_class)
    images = torch.randint(0, 60, (len(labels), *SHAPE), generator=rng()).to(torch.uint8)
    for at, label in enumerate(labels.tolist()):
        images[at, :, 2 * label] = 255
    return Labelled(images, labels)


def from_synthetic(method: str, **own: Any) -> Method:
    made = experiment(
        "digits",
        method,
        models__classifier={"name": "convnet", "width": 8, "depth": 2},
        models__generator="tiny-diffusion",
        **({"train__lr": 0.05, "train__batch_size": 8} | own),
    )
    from fedsim.models.image_arrays import to_unit_range

    given = {"synthetic": images_of_classes(), "prepare": to_unit_range}
    return build_method(made.for_method(), tiny_task(made, image_shape=SHAPE, **given))


def accuracy(method: Method, state: State) -> float:
    data = images_of_classes()
    logits = method.predictor(state)(method.task.prepare(data.inputs))
    return float((logits.argmax(1) == data.labels).float().mean())


def test_fedavg_can_start_from_the_generated_set():
    method = from_synthetic("fedavg_from_synthetic", options={"epochs": 30})
    plain = built("fedavg").setup(method.task, rng())
    state = method.setup(method.task, rng())
    assert accuracy(method, plain) < 0.6
    assert accuracy(method, state) > 0.9
    # The same start as FedAvg's, then the shared loop over the server's set.
    generator = rng()
    start = built("fedavg").setup(method.task, generator)
    train = method.config.train.model_copy(update={"local_epochs": 30})

    def logits(weights: Params, x: Tensor) -> Tensor:
        return method.predictor(weights)(x.float() / 127.5 - 1)

    expected = train_centrally(start, logits, images_of_classes(), train, generator)
    assert all(torch.equal(state[k], v) for k, v in expected.items())
    slow = from_synthetic("fedavg_from_synthetic", options={"epochs": 30, "lr": 1e-6})
    for name, value in slow.setup(slow.task, rng()).items():
        torch.testing.assert_close(value, start[name], atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="epochs"):
        from_synthetic("fedavg_from_synthetic", options={"epochs": 0})


def test_the_generated_set_alone():
    method = from_synthetic("synthetic_only_classifier", train__local_epochs=30)
    assert not method.uses_clients
    start = method.setup(method.task, rng())
    plain = built("fedavg").setup(method.task, rng())
    assert all(torch.equal(start[k], v) for k, v in plain.items())
    after = method.finish_round(start, Received({}, round=1), None, rng())  # type: ignore[arg-type]
    assert accuracy(method, after) > 0.9
    assert add(start, after).keys() == start.keys()
