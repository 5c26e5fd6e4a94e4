from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config import Experiment
from fedsim.config.sections import TrainConfig
from fedsim.distill.matching import class_means
from fedsim.distill.priors.pixels import NoisePixels
from fedsim.distill.shared_set import Means, MeansWork, Probing, match_means
from fedsim.methods.feddm_sums import ROUND, FedDMSums
from fedsim.models.image_arrays import to_unit_range
from fedsim.params import Params
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from fedsim.seeding import torch_rng
from tests.helpers import batches_of, federation, rngs, run
from tests.methods.test_feddgm import config as distilling

SHAPE = (1, 8, 8)


def config(options: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    own = {"probes": 3} | (options or {})
    return distilling(own, **{"use": "feddm_sums", "distill__feature_lr": 1.0, **settings})


def method(folder: Path, options: dict[str, Any] | None = None, **settings: Any) -> FedDMSums:
    one = federation(config(options, **settings), folder / "setup")
    one.setup()
    assert isinstance(one.method, FedDMSums)
    return one.method


def samples(num: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (num, *SHAPE), generator=rng).to(torch.uint8)
    return x, torch.randint(4, (num,), generator=rng)  # classes 4 to 9: nobody has them


def total(own: FedDMSums, message: Params, split: list[np.ndarray]) -> Params:
    """What the server learns of a split: the sum over its clients."""
    x, y = samples()
    batches = batches_of(TrainConfig(), split, x, y)
    object.__setattr__(batches, "prepare", to_unit_range)
    update, _ = own.client_update(message, batches, [{}] * len(split), rngs(batches))
    assert update.linear
    return {
        k: (v.double() * update.weight.view(-1, *[1] * (v.dim() - 1))).sum(0)
        for k, v in update.delta.items()
    }


@pytest.mark.parametrize("weights", ["fresh", "near"])
def test_sums_are_those_of_every_sample_by_itself(tmp_path: Path, weights: str):
    own = method(tmp_path, {"weights": weights})
    surrogate = own.net.init(torch_rng(0, "weights"))
    message = {**surrogate, ROUND: torch.tensor(4)}
    found = total(own, message, [np.arange(40)])
    x, y = samples()
    assert found["counts"].tolist() == torch.bincount(y, minlength=10).tolist()
    for r, probe in enumerate(own.probing.draw(own.net, surrogate, own.config.train_seed, 5)):
        assert probe.draw is not None
        wanted = torch.zeros_like(found["sums"][r])
        for image, label in zip(to_unit_range(x), y, strict=True):
            wanted[label] += probe(own.net, image[None])[0].detach()
        torch.testing.assert_close(found["sums"][r], wanted, rtol=1e-4, atol=1e-4)


def test_the_sum_is_the_same_under_any_partition(tmp_path: Path):
    own = method(tmp_path)
    message = {**own.net.init(torch_rng(0, "weights")), ROUND: torch.tensor(0)}
    _, y = samples()
    by_class = [np.flatnonzero(y == label) for label in range(4)]
    ragged = [np.arange(1), np.arange(1, 3), np.arange(3, 40)]
    together = total(own, message, [np.arange(40)])
    for split in (by_class, ragged):
        apart = total(own, message, split)
        torch.testing.assert_close(apart["counts"], together["counts"])
        torch.testing.assert_close(apart["sums"], together["sums"], rtol=1e-5, atol=1e-4)


def test_a_run_and_what_it_sends(tmp_path: Path):
    study = load(run(config({"global_models": ["lenet"]}), tmp_path))
    own = method(tmp_path)
    assert set(study.evaluations["model"]) >= {"global", "lenet"}
    clients = study.clients.query("round > 0")
    assert (clients["bytes_up"] == 4 * (3 * 10 * own.net.embed_dim + 10)).all()
    surrogate = own.net.init(torch_rng(0, "weights"))
    assert (clients["bytes_down"] >= 4 * sum(v.numel() for v in surrogate.values())).all()
    rows = study.synthetic
    assert rows["round"].tolist() == [1, 2]
    assert (rows["num_images"] == 10).all()
    assert (rows["match_loss_after"] < rows["match_loss_noise"]).all()
    assert study.synthetic_images(2).labels.tolist() == list(range(10))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path):
    whole = config()
    run(whole, tmp_path / "whole")
    stopped = federation(whole, tmp_path / "halves")
    stopped.setup()
    stopped.step()
    stopped.abort("interrupted")
    run(whole, tmp_path / "halves")
    assert equal_results(load(tmp_path / "whole"), load(tmp_path / "halves")) == []


def test_rounds_are_remembered_and_latents_go_on_unless_told_otherwise(tmp_path: Path):
    losses = {}
    for name, options in {
        "ours": {},
        "forgets": {"remember": False},
        "anew": {"warm_start": False},
    }.items():
        study = load(run(config(options, distill__latent_steps=5), tmp_path / name))
        losses[name] = study.synthetic.set_index("round")
    first = [one.loc[1, "match_loss_after"] for one in losses.values()]
    assert first[0] == first[1] == first[2]
    second = [one.loc[2, "match_loss_after"] for one in losses.values()]
    assert len(set(second)) == 3
    before = {name: one.loc[2, "match_loss_before"] for name, one in losses.items()}
    assert before["ours"] == before["forgets"] < before["anew"]


def test_the_set_comes_to_have_the_clients_means(tmp_path: Path):
    own = method(tmp_path)
    net, surrogate = own.net, own.net.init(torch_rng(0, "weights"))
    x, y = samples()
    probing = Probing(8, "fresh", 5.0, ())
    probes = probing.draw(net, surrogate, seed=3, round=1)
    values = torch.stack([class_means(p(net, to_unit_range(x)), y, 10) for p in probes]).detach()
    present = (torch.bincount(y, minlength=10) > 0).float()

    def noise() -> NoisePixels:
        return NoisePixels(SHAPE, "cpu")

    settings = config(
        distill__latent_steps=200, distill__images_per_class=2, distill__feature_lr=3.0
    ).distill
    made = match_means(
        MeansWork(
            net,
            (Means(surrogate, 1, values, present),),
            probing,
            (0, 1, 2, 3),
            settings,
            noise,
            noise,
            seed=3,
        )
    )
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert made.loss_after < 0.2 * made.loss_noise
    assert made.images.abs().max() <= 1
    unseen = Probing(8, "fresh", 5.0, ()).draw(net, surrogate, seed=4, round=1)

    def gap(images: torch.Tensor) -> float:
        real = [class_means(p(net, to_unit_range(x)), y, 10)[:4] for p in unseen]
        found = [class_means(p(net, images), made.labels, 10)[:4] for p in unseen]
        return float(torch.stack([(a - b).norm() for a, b in zip(real, found, strict=True)]).mean())

    random = noise().decode(noise().draw(made.labels, torch_rng(9, "noise")))
    assert gap(made.images) < 0.7 * gap(random), "networks that it was not matched with agree"
