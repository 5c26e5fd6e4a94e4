from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config import Experiment
from fedsim.config.sections import TrainConfig
from fedsim.distill.matching import class_means
from fedsim.distill.shared_set import Probe
from fedsim.errors import ConfigError
from fedsim.methods import feddm
from fedsim.methods.feddm import IMAGES, LABELS, FedDM
from fedsim.models.image_arrays import to_unit_range
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from fedsim.seeding import torch_rng
from tests.helpers import batches_of, experiment, federation, rngs, run, write_features
from tests.methods.test_feddgm import config as distilling


def config(options: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    return distilling(options, **{"use": "feddm", **settings})


def method(folder: Path, **settings: Any) -> FedDM:
    one = federation(config(**settings), folder / "setup")
    one.setup()
    assert isinstance(one.method, FedDM)
    return one.method


def test_a_run_and_what_it_sends(tmp_path: Path):
    study = load(run(config({"global_models": ["lenet"]}), tmp_path))
    assert set(study.evaluations["model"]) >= {"global", "lenet"}
    rows = study.synthetic.query("round == 1").set_index("client_id")
    clients = study.clients.query("round == 1").set_index("client_id")
    each = 8 * 8 + 2  # a grey image of bytes, and a label
    assert (clients["bytes_up"] == rows["num_images"] * each).all()
    start = study.clients.query("round == 0").set_index("client_id")["label_counts"]
    for client, counts in start.items():
        assert rows.loc[client, "num_classes"] <= (np.asarray(counts) > 0).sum()


def test_a_run_without_augmentation_is_counted_too(tmp_path: Path):
    """Gradients by what a module reads as it is: torch's counter of operations has to bear that."""
    flops = []
    for steps in (1, 3):
        settings = {"distill__augment": [], "distill__latent_steps": steps, "train__rounds": 1}
        study = load(run(config(**settings), tmp_path / str(steps)))
        flops.append(study.clients.query("round == 1")["train_flops"].sum())
    assert flops[1] > 2 * flops[0] > 0


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path):
    whole = config({"replay": 1})
    run(whole, tmp_path / "whole")
    stopped = federation(whole, tmp_path / "halves")
    stopped.setup()
    stopped.step()
    stopped.abort("interrupted")
    run(whole, tmp_path / "halves")
    assert equal_results(load(tmp_path / "whole"), load(tmp_path / "halves")) == []


@pytest.mark.parametrize("use", ["feddm", "feddm_sums", "feddgm", "dynafed", "cachefl_dgm"])
def test_a_third_of_clients_without_most_classes_is_enough(tmp_path: Path, use: str):
    given = {"train__participation": 0.3, "partition__dirichlet_alpha": 0.05}
    if use == "cachefl_dgm":
        shots = {"data__prototype_shots": 1, "cache__init": "public_shots"}
        one = experiment(write_features(tmp_path), use, **(given | shots))
    else:
        own = {"trajectory_rounds": 2} if use == "dynafed" else {}
        given |= {"train__rounds": 3, "partition__num_clients": 6}
        one = distilling(own, use=use, **given)
    study = load(run(one, tmp_path))
    assert study.runs["status"].tolist() == ["finished"]
    assert study.rounds["num_clients_ok"].iloc[1:].tolist() == [2, 2, 2]
    counts = study.clients.query("round == 0")["label_counts"]
    assert sum((np.asarray(held) == 0).sum() for held in counts) > 6
    assert study.rounds[["accuracy", "loss"]].notna().all().all()
    assert not study.synthetic.empty


def test_the_images_features_come_to_be_like_the_client_s(tmp_path: Path):
    """With rho = 0 and no augmentation, class means of features approach those of the client."""
    settings = {"distill__latent_steps": 0, "distill__augment": [], "distill__feature_lr": 1.0}
    x = torch.randint(256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    y = torch.tensor([2, 5]).repeat_interleave(6)
    gaps = []
    for steps in (0, 40):
        own = method(tmp_path, **(settings | {"distill__latent_steps": steps}))
        own.options = FedDM.Options(rho=0.0)
        weights = own.net.init(torch_rng(0, "weights"))
        rows = (np.arange(12),)
        batches = batches_of(TrainConfig(), rows, x.to(torch.uint8), y)
        object.__setattr__(batches, "prepare", to_unit_range)
        update, _ = own.client_update(weights, batches, [{}], rngs(batches))
        sent = update.extra[0]
        assert sent[LABELS].tolist() == [2, 5]
        assert sent[IMAGES].dtype == torch.uint8
        real = class_means(own.net.embed(weights, to_unit_range(x.to(torch.uint8))), y, 10)
        made = own.net.embed(weights, to_unit_range(sent[IMAGES]))
        gaps.append(float((class_means(made, sent[LABELS].long(), 10) - real).norm()))
    assert gaps[1] < 0.5 * gaps[0]


def test_every_step_looks_with_other_weights_near_those_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own, seen = method(tmp_path, distill__latent_steps=3), list[torch.Tensor]()
    own.options = FedDM.Options(rho=2.0)
    weights = own.net.init(torch_rng(0, "weights"))

    def watched(near: Any, draw: Any) -> Probe:
        seen.append(torch.cat([(near[k] - v).flatten() for k, v in weights.items()]))
        return Probe(near, draw)

    monkeypatch.setattr(feddm, "Probe", watched)
    x = torch.randint(256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    rows, y = (np.arange(4), np.arange(4, 8)), torch.tensor([2, 5]).repeat(4)
    batches = batches_of(TrainConfig(), rows, x.to(torch.uint8), y)
    object.__setattr__(batches, "prepare", to_unit_range)
    own.client_update(weights, batches, [{}] * 2, rngs(batches))
    moves = torch.stack(seen)
    assert len(moves) == 2 * 3
    torch.testing.assert_close(moves.norm(dim=1), torch.full((6,), 2.0))
    assert torch.pdist(moves).min() > 2  # clients and steps draw their own: nearly right angles


def test_the_perturbation_changes_the_images_and_nothing_breaks(tmp_path: Path):
    """Against the same noise to start from and the same augmentations without it."""
    studies = [
        load(run(config({"rho": rho}, distill__feature_lr=1.0), tmp_path / str(rho)))
        for rho in (0.0, 5.0)
    ]
    none, some = (study.synthetic_images(1) for study in studies)
    assert none.labels.tolist() == some.labels.tolist()
    assert (none.images != some.images).any((1, 2, 3)).all()
    for study in studies:
        assert np.isfinite(study.rounds[["accuracy", "loss"]]).all().all()
        assert study.events.empty


def test_dynafed_is_fedavg_until_it_distils_once(tmp_path: Path):
    options = {"trajectory_rounds": 2}
    study = load(run(distilling(options, use="dynafed", train__rounds=3), tmp_path / "dynafed"))
    plain = distilling({}, use="feddgm", train__rounds=2)
    fedavg = plain.model_copy(update={"method": "fedavg", "use": "fedavg", "options": {}})
    same = load(run(fedavg, tmp_path / "fedavg"))
    assert study.rounds["loss"][:2].tolist() == same.rounds["loss"][:2].tolist()
    assert study.rounds["loss"][2] != same.rounds["loss"][2]
    assert study.synthetic["round"].tolist() == [2]
    assert study.synthetic["client_id"].isna().all()
    assert study.synthetic_images(2).labels.tolist() == list(range(10))
    weights = study.clients.query("round == 1")["bytes_up"]
    assert (weights == same.clients.query("round == 1")["bytes_up"]).all()


def test_dynafed_goes_on_after_a_kill(tmp_path: Path):
    whole = distilling({"trajectory_rounds": 2}, use="dynafed", train__rounds=3)
    run(whole, tmp_path / "whole")
    stopped = federation(whole, tmp_path / "halves")
    stopped.setup()
    stopped.step()
    stopped.abort("interrupted")
    run(whole, tmp_path / "halves")
    assert equal_results(load(tmp_path / "whole"), load(tmp_path / "halves")) == []


def test_dynafed_refuses_segments_longer_than_its_trajectory(tmp_path: Path):
    options = {"trajectory_rounds": 2, "segment_rounds": 3}
    with pytest.raises(ConfigError, match="longer than the trajectory of 2 rounds"):
        run(distilling(options, use="dynafed"), tmp_path)
