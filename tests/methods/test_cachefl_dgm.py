"""The joined method: what moves give away, the student's match, and the nulls it stands beside."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config import Experiment
from fedsim.config.distill import DistillConfig
from fedsim.distill.priors.base import Prompts
from fedsim.distill.priors.features import EncodedImages, encoded_priors
from fedsim.engine.round import LocalExecutor
from fedsim.errors import ConfigError
from fedsim.methods import build_method, cachefl_dgm, check_options, method_class
from fedsim.methods.base import Received, State, Update
from fedsim.methods.cachefl_dgm import CacheDGM, directions, held_classes
from fedsim.methods.training import Optimizer
from fedsim.params import unstack
from fedsim.results.study import load
from tests.helpers import (
    batches_of,
    experiment,
    run,
    synthetic_set,
    tiny_task,
    unit,
    write_features,
)

D, N = 16, 4
DISTILL = {"latent_steps": 40, "student_steps": 4, "optimizer": "adam", "latent_lr": 0.01}


def config(folder: Path | str = "features.npz", **settings: Any) -> Experiment:
    given: dict[str, Any] = {
        "cache__init": "public_shots",
        "cache__images_per_class": 2,
        "cache__residual_ratio": 5.0,
        "cache__sharpness": 2.0,
        "train__lr": 0.05,
        "distill": DISTILL | {"images_per_class": 1, "gradient": "unroll", "student_lr": "auto"},
    }
    return experiment(folder, "cachefl_dgm", **(given | settings))


def cone(count: int, label: int, seed: int) -> Tensor:
    """Features of a class, in a cone as CLIP's are."""
    noise = 0.3 * unit(count, D, seed=seed)
    return F.normalize(1.5 * unit(1, D, seed=99) + unit(N, D, seed=7)[label] + noise, dim=-1)


def clients(method: CacheDGM) -> tuple[State, Received, list[set[int]]]:
    """One round of three clients, each with two of the four classes."""
    held, parts, labels = [{0, 1}, {1, 2}, {3, 0}], [], []
    for number, classes in enumerate(held):
        for label in sorted(classes):
            parts.append(cone(8, label, 10 * number + label))
            labels += [label] * 8
    rows = torch.arange(48).view(3, 16).numpy()
    batches = batches_of(method.config.train, list(rows), torch.cat(parts), torch.tensor(labels))
    state = method.setup(method.task, torch.Generator().manual_seed(0))
    state["keys"] = torch.cat([cone(2, label, 50 + label) for label in range(N)])
    state["initial"] = state["keys"]
    update, _ = method.client_update(
        method.constants(state) | method.message(state),
        batches,
        [{}] * 3,
        [torch.Generator().manual_seed(c) for c in range(3)],
    )
    kept = tuple(
        (
            c,
            Update(
                {k: v[None] for k, v in unstack(update.delta, c).items()}, update.weight[c : c + 1]
            ),
        )
        for c in range(3)
    )
    return state, Received({}, kept, 3, 1), held


def made(**settings: Any) -> CacheDGM:
    made_config = config(**settings)
    text = torch.stack([cone(1, label, 80 + label)[0] for label in range(N)])
    method = build_method(
        made_config.for_method(),
        tiny_task(
            made_config, N, D, text_features=text, logit_scale=2.0, public=synthetic_set(N, D, 2)
        ),
    )
    assert isinstance(method, CacheDGM)
    return method


def finished(method: CacheDGM) -> State:
    state, received, _ = clients(method)
    state = method.aggregate(state, received)
    return method.finish_round(state, received, LocalExecutor(), torch.Generator())


def test_moves_tell_which_classes_a_client_holds():
    state, received, held = clients(made())
    for (_, update), classes in zip(received.kept, held, strict=True):
        move = update.delta["keys"][0]
        assert set(held_classes(state["keys"], move, state["labels"])) == classes


def test_moves_point_to_the_images_of_a_class():
    state, received, _ = clients(made())
    move = received.kept[0][1].delta["keys"][0]
    means = torch.stack([F.normalize(cone(99, c, 300 + c).mean(0), dim=-1) for c in range(N)])
    for label in (0, 1):  # what the first client holds
        found = directions(move[state["labels"] == label], 1)[0]
        assert int((means @ found).argmax()) == label
        assert found @ means[label] > 0.6


def test_directions_are_unit_vectors_of_as_many_as_asked():
    rows = unit(3, D) * 4
    for count in (1, 2, 3, 5):
        found = directions(rows, count)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(count))
    torch.testing.assert_close(directions(rows, 3), rows / 4)


@pytest.mark.parametrize("start", ["moves", "keys"])
def test_a_student_on_the_set_makes_the_client_s_move(start: str):
    method = made(options={"start": start})
    state, received, _ = clients(method)
    state = method.aggregate(state, received)
    sources = [method._source(state, c, u.delta["keys"][0]) for c, u in received.kept]
    for source in sources:
        moves, settings = [(method._student(state), [source])], method.config.distill
        (found,) = method.distilled(moves, settings, 1, LocalExecutor())
        assert found.loss_after < 0.7 * found.loss_before
        assert found.loss_after < 0.7 * found.loss_noise
        torch.testing.assert_close(found.images.norm(dim=1), torch.ones(2))
        assert found.labels.tolist() == list(source.classes)


def test_without_server_steps_it_is_cachefl():
    state = finished(made(options={"server_steps": 0}))
    sent, received, _ = clients(made())
    expected = sent["keys"] + received.average()["keys"]
    torch.testing.assert_close(state["keys"], expected)


def test_a_round_without_answers_changes_nothing():
    method = made(options={"replay": 1})
    state = finished(method)
    assert method.made(state) is not None
    nobody = Received({}, (), 0, 2)
    after = method.aggregate(state, nobody)
    after = method.finish_round(after, nobody, LocalExecutor(), torch.Generator())
    assert torch.equal(after["keys"], state["keys"])
    assert method.made(after) is None  # not once more what the last round made


def test_the_union_makes_a_better_cache_than_the_average():
    x = torch.cat([cone(30, label, 200 + label) for label in range(N)])
    y = torch.arange(N).repeat_interleave(30)
    losses = {}
    for name, steps in {"average": 0, "union": 20}.items():
        method = made(options={"server_steps": steps, "server_lr": 0.05})
        losses[name] = float(F.cross_entropy(method.predictor(finished(method))(x), y))
    assert losses["union"] < losses["average"]


def test_the_null_on_the_first_cache_is_a_loop_from_the_average():
    steps, lr = 3, 0.05
    method = made(options={"data": "initial", "server_steps": steps, "server_lr": lr})
    state, received, _ = clients(method)
    first = torch.cat([cone(2, label, 400 + label) for label in range(N)])  # not what is sent now
    state["initial"] = 3 * first
    keys, total = state["keys"], sum(float(u.weight[0]) for _, u in received.kept)
    for _ in range(2):  # rounds: the momentum ends with one, the set does not
        for _, update in received.kept:
            keys = keys + float(update.weight[0]) / total * update.delta["keys"][0]
        momentum = torch.zeros_like(keys)
        for _ in range(steps):
            keys = keys.detach().requires_grad_()
            near = torch.exp(-2.0 * (1 - first @ keys.T))
            logits = 2.0 * first @ state["text"].T + 5.0 * near @ state["values"]
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, state["labels"]), keys)
            momentum = 0.9 * momentum + slope
            keys = keys.detach() - lr * momentum
        state = method.aggregate(state, received)
        average = state["keys"]
        state = method.finish_round(state, received, LocalExecutor(), torch.Generator())
        torch.testing.assert_close(state["keys"], keys)
        assert (state["keys"] - average).abs().max() > 1e-3


@pytest.mark.parametrize("data", ["clients", "mean", "initial"])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_nulls_are_options(
    tmp_path: Path, data: str, steps: int, monkeypatch: pytest.MonkeyPatch
):
    """A set for every move, one for their average, or none; and equally many server steps."""
    taken: list[Tensor] = []

    class Counted(Optimizer):
        def step(self, loss: Tensor) -> None:
            taken.append(loss)
            super().step(loss)

    monkeypatch.setattr(cachefl_dgm, "Optimizer", Counted)
    made_config = config(
        write_features(tmp_path),
        options={"data": data, "replay": 1, "server_steps": 4},
        distill={"latent_steps": steps, "student_steps": 2, "images_per_class": 2},
        train__rounds=2,
    )
    study = load(run(made_config, tmp_path))
    assert study.runs["status"].tolist() == ["finished"]
    assert len(taken) == 2 * 4
    sets = study.synthetic.query("round > 0")
    makers = {"clients": range(6), "mean": [-1], "initial": []}[data]
    found = zip(sets["round"], sets["client_id"].fillna(-1), strict=True)
    assert sorted(found) == [(number, maker) for number in (1, 2) for maker in makers]
    if data != "initial":
        assert sets["match_loss_after"].notna().all()
        assert (sets["match_loss_after"] == sets["match_loss_before"]).all() == (steps == 0)
        assert (sets["num_images"] == 2 * sets["num_classes"]).all()


def test_images_behind_an_encoder_pass_gradients_to_latents():
    prompts = Prompts("tiny-diffusion", ("one", "two"))
    loaders = encoded_priors(DistillConfig(), prompts, "tiny-clip", "cpu")
    prior, noise = (load() for load in loaders)
    assert isinstance(prior, EncodedImages)
    labels = torch.tensor([0, 1])
    latents = prior.draw(labels, torch.Generator().manual_seed(0))
    leaves = {k: v.requires_grad_() for k, v in latents.items()}
    features = prior.decode(leaves)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    features[0, 0].backward()
    (gradient,) = (v.grad for v in leaves.values())
    assert gradient is not None
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()
    images = prior.images({k: v.detach() for k, v in leaves.items()})
    assert images.shape == (2, 3, *images.shape[3:] * 2)
    random = noise.decode(noise.draw(labels, torch.Generator().manual_seed(0)))
    assert random[0] @ features[0].detach() < 0.99


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"train__optimizer": "adamw"}, "train.optimizer to sgd"),
        ({"cache__trainable": "keys_values"}, "cache.trainable to keys"),
        ({"cache__init": "random"}, "set cache.init to something else"),
        ({"distill": DISTILL | {"distance": "layerwise"}}, "leave distill.distance at squared"),
        ({"options": {"space": "generator"}, "models": {"clip": None}}, "needs models.clip"),
    ],
)
def test_what_cannot_be_distilled_is_refused(settings: dict[str, Any], match: str):
    with pytest.raises(ConfigError, match=match):
        check_options(config(**settings).for_method(), method_class("cachefl_dgm"))
