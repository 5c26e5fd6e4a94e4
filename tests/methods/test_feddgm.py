from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsim.config import Experiment
from fedsim.config.classifier import ClassifierConfig
from fedsim.driver.traffic import traffic
from fedsim.engine.round import LocalExecutor
from fedsim.errors import ClientError, ConfigError, ResultsError
from fedsim.methods.feddgm import COUNTS, FedDGM
from fedsim.methods.shared import from_prior
from fedsim.models.classifiers import Classifier
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from tests.helpers import experiment, federation, run

TINY: dict[str, Any] = {
    "data__max_train_samples": 120,
    "models__classifier": {"name": "convnet", "depth": 2, "width": 4},
    "partition__num_clients": 3,
    "partition__dirichlet_alpha": 0.3,
    "train__rounds": 2,
    "train__lr": 0.05,
    "distill__prior": "pixels",
    "distill__init": "noise",
    "distill__images_per_class": 1,
    "distill__latent_steps": 2,
    "distill__student_steps": 2,
    "distill__augment": ["crop", "rotate"],
}
SERVER = {"server_epochs": 3, "server_batch_size": 16, "server_lr": 0.05}


def config(options: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    given = SERVER | (options or {})
    use = settings.pop("use", "feddgm")
    return experiment("digits", use, options=given, **(TINY | settings))


def test_a_run_leaves_models_sets_and_images(tmp_path: Path):
    study = load(run(config({"global_models": ["lenet"]}), tmp_path))
    assert set(study.evaluations["model"]) >= {"global", "lenet"}
    assert (study.rounds.loc[study.rounds["round"] > 0, "distill_s"] > 0).all()
    rows = study.synthetic
    assert sorted(zip(rows["round"], rows["client_id"], strict=True)) == [
        (r, c) for r in (1, 2) for c in range(3)
    ]
    assert (rows["num_images"] == 10).all()
    assert (rows["num_classes"] == 10).all()  # the server is not told which are absent
    assert rows["local_classes"].between(1, 9).all()  # the rows are: Dirichlet 0.3
    assert rows[["match_loss_before", "match_loss_after", "match_loss_noise"]].notna().all().all()
    (run_id,) = study.runs["run_id"]
    assert study.synthetic_rounds() == {run_id: [1, 2]}
    found = study.synthetic_images(2)
    assert found.images.shape == (30, 8, 8, 3)
    assert found.images.dtype == np.uint8
    assert found.labels.tolist() == list(range(10)) * 3
    assert found.clients is not None
    assert found.clients.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert not np.array_equal(found.images, study.synthetic_images(1).images)
    with pytest.raises(ResultsError, match=r"no images of round 7; .* has rounds \[1, 2\]"):
        study.synthetic_images(7)
    assert study.synthetic_sets() == []


def test_only_the_surrogate_and_its_change_are_sent(tmp_path: Path):
    study = load(run(config({"global_models": ["lenet"]}, train__rounds=1), tmp_path))
    clients = study.clients[study.clients["round"] == 1]
    weights = FedDGM(_task(tmp_path), FedDGM.Options(**SERVER)).net.num_params
    assert (clients["bytes_up"] == 4 * weights).all()
    assert (clients["bytes_down"] == 4 * weights).all()
    assert clients["loss_after"].notna().all()


def _task(folder: Path) -> Any:
    run = federation(config(), folder / "other")
    run.setup()
    return run.method.task


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path):
    whole = config({"warm_start": True, "replay": 1})
    run(whole, tmp_path / "whole")
    stopped = federation(whole, tmp_path / "halves")
    stopped.setup()
    stopped.step()
    stopped.abort("interrupted")
    run(whole, tmp_path / "halves")
    assert equal_results(load(tmp_path / "whole"), load(tmp_path / "halves")) == []
    first, second = (load(tmp_path / name).synthetic_images(2) for name in ("whole", "halves"))
    assert np.array_equal(first.images, second.images)


class Backwards(LocalExecutor):
    def map(self, function: Any, items: Any) -> list[Any]:

        done = [
            pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(i))) for i in items[::-1]
        ]
        return done[::-1]


def test_items_travel_and_may_be_done_in_any_order(tmp_path: Path):
    images = []
    for name, executor in (("a", LocalExecutor()), ("b", Backwards())):
        one = federation(config(train__rounds=1), tmp_path / name)
        one.executor = executor
        one.setup()
        one.step()
        one.finish()
        images.append(load(tmp_path / name).synthetic_images(1).images)
    assert np.array_equal(*images)


@pytest.mark.parametrize("augment", [[], ["crop", "rotate"], ["color"]])
def test_clients_distilled_together_are_clients_alone(tmp_path: Path, augment: list[str]):
    """Up to rounding, also in augmentation, and beside clients with more classes."""
    found, images = [], []
    for at_once in (1, 3):
        settings = {"clients_at_once": at_once, "augment": augment, "latent_steps": 6}
        given = {"train__rounds": 1} | {f"distill__{k}": v for k, v in settings.items()}
        study = load(run(config({"skip_absent": True}, **given), tmp_path / str(at_once)))
        found.append(study.synthetic[["match_loss_before", "match_loss_after"]].to_numpy())
        images.append(study.synthetic_images(1).images.astype(int))
        assert study.synthetic["num_classes"].nunique() > 1
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)
    assert abs(images[0] - images[1]).max() <= 2


def test_absent_classes_can_be_skipped(tmp_path: Path):
    study = load(run(config({"skip_absent": True}, train__rounds=1), tmp_path))
    start = study.clients[study.clients["round"] == 0].set_index("client_id")["label_counts"]
    made = study.synthetic_images(1)
    assert made.clients is not None
    for client, counts in start.items():
        held = set(np.unique(made.labels[made.clients == client]))
        assert held <= set(np.flatnonzero(np.asarray(counts)))
        assert held
    clients = study.clients[study.clients["round"] == 1]
    plain = load(run(config(train__rounds=1), tmp_path / "plain")).clients
    plain = plain[plain["round"] == 1]
    assert (clients["bytes_up"].to_numpy() - plain["bytes_up"].to_numpy() == 4 * 10).all()


def test_warm_up_is_fedavg(tmp_path: Path):
    warm = config({"warmup_rounds": 2}, train__rounds=3)
    run(warm, tmp_path / "warm")
    plain = {k: v for k, v in TINY.items() if not k.startswith("distill")}
    run(experiment("digits", "fedavg", **plain), tmp_path / "fedavg")
    a, b = (load(tmp_path / name).rounds["loss"].to_numpy() for name in ("warm", "fedavg"))
    np.testing.assert_allclose(a[:3], b, rtol=1e-5)
    assert set(load(tmp_path / "warm").synthetic["round"]) == {3}


def test_segments_send_checkpoints_and_are_matched(tmp_path: Path):
    one = load(run(config(train__rounds=1), tmp_path / "1"))
    two = load(run(config({"segments": 2}, train__rounds=1), tmp_path / "2"))
    a, b = (s.clients.loc[s.clients["round"] == 1, "bytes_up"].to_numpy() for s in (one, two))
    assert (b == 2 * a).all()
    assert not np.array_equal(one.synthetic["match_loss_after"], two.synthetic["match_loss_after"])


def test_several_starts_are_drawn_alike_by_clients_and_server(tmp_path: Path, monkeypatch: Any):
    seen: dict[int, list[Any]] = {}
    matched = from_prior.distil

    def kept(work: Any) -> Any:
        seen.setdefault(work.round, []).extend(s.segments for s in work.sources)
        return matched(work)

    monkeypatch.setattr(from_prior, "distil", kept)
    one = load(run(config(train__rounds=2), tmp_path / "1"))
    seen.clear()
    two = load(run(config({"starts": 2}, train__rounds=2), tmp_path / "2"))
    clients = [s.clients[s.clients["round"] == 1] for s in (one, two)]
    assert (clients[1]["bytes_up"].to_numpy() == 2 * clients[0]["bytes_up"].to_numpy()).all()
    assert (clients[1]["bytes_down"].to_numpy() == clients[0]["bytes_down"].to_numpy() + 8).all()
    starts = []
    for round in (1, 2):
        assert [len(segments) for segments in seen[round]] == [2, 2, 2]
        others = [segments[1][0]["head.weight"] for segments in seen[round]]
        assert all(torch.equal(others[0], other) for other in others)
        assert not torch.equal(others[0], seen[round][0][0][0]["head.weight"])
        starts.append(others[0])
    assert not torch.equal(*starts)


def test_moves_from_other_starts_are_those_of_local_training(tmp_path: Path, monkeypatch: Any):
    works: list[Any] = []
    matched = from_prior.distil
    monkeypatch.setattr(from_prior, "distil", lambda work: works.append(work) or matched(work))
    one = federation(config({"starts": 3}, train__rounds=1), tmp_path)
    one.setup()
    one.step()
    one.abort("interrupted")
    net = one.method.net
    for work in works:
        (source,) = work.sources
        mine = one.data.holdings.fit[source.client_id]
        images = one.method.task.prepare(torch.as_tensor(one.data.arrays["train_inputs"][mine]))
        labels = torch.as_tensor(one.data.arrays["train_labels"][mine])
        for first, last in source.segments:
            before, after = (float(F.cross_entropy(net(w, images), labels)) for w in (first, last))
            assert after < before


def test_training_on_the_sets_may_be_augmented_unlike_matching(tmp_path: Path):
    found = {}
    for name, chosen in {"same": None, "none": [], "crop": ["crop"]}.items():
        settings = {"train__rounds": 1, "distill__augment": []}
        study = load(run(config({"server_augment": chosen}, **settings), tmp_path / name))
        found[name] = study.synthetic_images(1).images, study.rounds["loss"].iloc[-1]
    assert all(np.array_equal(found["same"][0], images) for images, _ in found.values())
    assert found["same"][1] == found["none"][1] != found["crop"][1]


def test_clients_may_have_different_surrogates(tmp_path: Path):
    options = {"other_surrogates": ["lenet"], "global_models": ["lenet"], "starts": 2}
    mixed = config(options, train__rounds=2)
    study = load(run(mixed, tmp_path))
    assert set(study.evaluations["model"]) == {"global", "lenet_1", "lenet_2"}
    clients = study.clients[study.clients["round"] == 2].set_index("client_id")
    small, other = (_num_params(tmp_path, c) for c in (TINY["models__classifier"], "lenet"))
    for client, weights in enumerate((small, other, small)):
        assert clients.loc[client, "bytes_down"] == 4 * weights + 8
        assert clients.loc[client, "bytes_up"] == 2 * 4 * weights
    told = traffic(mixed)  # what a dry run says of one client: the mean over them
    assert told.up == round(clients["bytes_up"].mean())
    assert told.down == round(clients["bytes_down"].mean())
    assert (clients["update_norm"] > 0).all()
    assert study.synthetic.groupby("round")["client_id"].apply(list).to_list() == [[0, 1, 2]] * 2
    with pytest.raises(ConfigError, match="warmup_rounds .* leave one of them out"):
        run(config({"other_surrogates": ["lenet"], "warmup_rounds": 1}), tmp_path / "warm")


def test_clients_with_the_first_surrogate_learn_what_they_would_without_others(tmp_path: Path):
    """The network of client 1 changes neither the training nor the set of client 0."""
    found = []
    for others in ([], ["lenet"]):
        options = {"other_surrogates": others}
        study = load(run(config(options, train__rounds=1), tmp_path / str(len(others))))
        found.append(study.synthetic.set_index("client_id")["match_loss_after"])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] != pytest.approx(found[1][1], rel=1e-4)


def _num_params(folder: Path, settings: Any) -> int:
    task = _task(folder)
    return Classifier(
        ClassifierConfig.model_validate(settings), task.image_shape, task.num_classes
    ).num_params


def test_no_latent_steps_are_the_prior_alone(tmp_path: Path):
    study = load(run(config(distill__latent_steps=0, train__rounds=1), tmp_path))
    rows = study.synthetic
    assert (rows["match_loss_before"] == rows["match_loss_after"]).all()


def test_partial_participation(tmp_path: Path):
    study = load(run(config({"warm_start": True}, train__participation=0.3), tmp_path))
    assert study.synthetic.groupby("round")["client_id"].nunique().to_list() == [1, 1]


@pytest.mark.parametrize("where", ["delta", "extra"])
def test_a_client_that_sends_nan_is_refused_by_name(tmp_path: Path, where: str, monkeypatch: Any):
    train = FedDGM.client_update

    def spoilt(self: FedDGM, *args: Any) -> Any:
        update, states = train(self, *args)
        batches = args[1]
        for c, client in enumerate(batches.client_ids):
            if client == 1 and where == "delta":
                update.delta["head.bias"][c, 0] = torch.nan
            elif client == 1:
                update.extra[c][COUNTS] = update.extra[c][COUNTS].float() * torch.nan
        return update, states

    monkeypatch.setattr(FedDGM, "client_update", spoilt)
    options = {"skip_absent": True}
    with pytest.raises(ClientError, match="client 1"):
        run(config(options, train__rounds=1), tmp_path / "raise")
    dropping = config(options, train__rounds=1, failures__policy="drop")
    study = load(run(dropping, tmp_path / "drop"))
    assert set(study.synthetic["client_id"]) == {0, 2}
    (event,) = study.events.loc[study.events["kind"] == "client_failed", "message"]
    assert "NaN" in event


def test_wrong_settings_say_what_to_do(tmp_path: Path):
    with pytest.raises(ConfigError, match="2 words for 10 classes"):
        run(config(distill__words=["a", "b"]), tmp_path)
    with pytest.raises(ConfigError, match="models.generator"):
        run(config(distill__prior="vae"), tmp_path)
    with pytest.raises(ConfigError, match="server_epoch"):
        run(config({"server_epoch": 3}), tmp_path)


def test_matching_learns(tmp_path: Path):
    """The set's student gets closer to the client than noise or the start do."""
    settings = {
        "train__rounds": 1,
        "distill__latent_steps": 25,
        "distill__optimizer": "adam",
        "distill__feature_lr": 0.1,
        "distill__student_steps": 5,
        "distill__student_lr": "auto",
        "distill__augment": [],
        "distill__images_per_class": 2,
    }
    rows = load(run(config({"skip_absent": True}, **settings), tmp_path)).synthetic
    assert (rows["match_loss_after"] < 0.8 * rows["match_loss_before"]).all()
    assert (rows["match_loss_after"] < 0.8 * rows["match_loss_noise"]).all()


VAE: dict[str, Any] = {
    "models__generator": "tiny-diffusion",
    "distill__prior": "vae",
    "distill__loss": "gradient",
    "distill__augment": [],
    "distill__optimizer": "adam",
    "distill__latent_lr": 1e-6,
    "distill__latent_steps": 12,
    "partition__num_clients": 2,
    "train__rounds": 1,
}


def test_a_fine_tuned_decoder_matches_better_and_is_each_client_s_own(tmp_path: Path):
    found = {}
    for lr in (0.0, 0.001):
        one = federation(config(distill__generator_lr=lr, **VAE), tmp_path / str(lr))
        one.executor = Backwards() if lr else LocalExecutor()
        one.setup()
        one.step()
        one.finish()
        found[lr] = load(tmp_path / str(lr)).synthetic
    frozen, tuned = (found[lr]["match_loss_after"] for lr in (0.0, 0.001))
    assert (tuned < 0.98 * frozen).all()
    # All began from the pretrained decoder: no set was made by what another's had become.
    assert found[0.001]["match_loss_before"].equals(found[0.0]["match_loss_before"])


def test_a_fine_tuned_decoder_is_refused_where_it_could_not_be_one_client_s(tmp_path: Path):
    with pytest.raises(ConfigError, match="clients_at_once is 2: set it to 1"):
        config(distill__generator_lr=0.01, distill__clients_at_once=2, distill__prior="vae")
    with pytest.raises(ConfigError, match="not 'pixels'"):
        config(distill__generator_lr=0.01)
    with pytest.raises(ConfigError, match="no generator"):
        run(config(use="feddm", distill__generator_lr=0.01, distill__prior="vae"), tmp_path)


def test_the_union_is_trained_on_from_the_clients_mean(tmp_path: Path):
    """With next to no training on it what is left is FedAvg, which it is without any."""
    still = {"server_lr": 1e-9, "server_epochs": 1}
    run(config(still | {"average": True}), tmp_path / "mean")
    run(config(still), tmp_path / "before")
    plain = {k: v for k, v in TINY.items() if not k.startswith("distill")}
    run(experiment("digits", "fedavg", **plain), tmp_path / "fedavg")
    mean, before, fedavg = (
        load(tmp_path / name).rounds["loss"].to_numpy() for name in ("mean", "before", "fedavg")
    )
    np.testing.assert_allclose(mean, fedavg, rtol=1e-5)
    np.testing.assert_allclose(before, before[0], rtol=1e-5)
    assert abs(mean[-1] - before[-1]) > 0.01
    with pytest.raises(ConfigError, match=r"options.average averages .* leave one of them out"):
        run(config({"other_surrogates": ["lenet"], "average": True}), tmp_path / "others")


def test_networks_may_start_from_generated_images(tmp_path: Path):
    """All that the server holds, and the surrogate alike whatever is beside it."""
    generated = {"models__generator": "tiny-diffusion", "cache__images_per_class": 8}
    more = {"train__rounds": 1, "train__local_epochs": 1} | generated
    first = {}
    for name, options in {
        "random": {},
        "alone": {"pretrain_epochs": 20},
        "beside": {"pretrain_epochs": 20, "global_models": ["lenet"]},
    }.items():
        found = load(run(config(options, **more), tmp_path / name)).evaluations
        start = found[(found["round"] == 0) & (found["metric"] == "nll")]
        first[name] = start[start["split"] == "test"].groupby("model")["value"].first()
    assert first["alone"]["global"] == first["beside"]["global"]
    assert first["alone"]["global"] != first["random"]["global"]
    assert first["beside"]["lenet"] < 2.3


def test_the_mean_is_taken_also_where_nothing_could_be_distilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FedDGM, "client_sets", lambda *_: [])
    run(config({"average": True}), tmp_path / "mean")
    plain = {k: v for k, v in TINY.items() if not k.startswith("distill")}
    run(experiment("digits", "fedavg", **plain), tmp_path / "fedavg")
    mean, fedavg = (load(tmp_path / n).rounds["loss"].to_numpy() for n in ("mean", "fedavg"))
    np.testing.assert_allclose(mean, fedavg, rtol=1e-5)
