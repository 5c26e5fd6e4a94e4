"""What becomes of distilled sets: measured, kept, replayed, left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.engine import round as round_loop
from fedsim.engine.local import drive
from fedsim.engine.round import LocalExecutor
from fedsim.errors import ClientError, ConfigError
from fedsim.inputs.preflight import preflight
from fedsim.methods import feddgm, feddm
from fedsim.methods.shared import from_prior, trains_on_sets
from fedsim.results.report.synthetic_sets import synthetic_quality
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from tests.helpers import federation, run
from tests.methods.test_feddgm import config


def test_a_set_that_diverged_is_left_out_by_name(tmp_path: Path, monkeypatch: Any):
    real, starts = from_prior.distil, dict[tuple[int, int], bool]()

    def spoilt(work: Any) -> Any:
        starts.update({(work.round, s.client_id): bool(s.latents) for s in work.sources})
        return [
            replace(one, images=one.images * torch.nan)
            if (work.round, one.client_id) == (2, 1)
            else one
            for one in real(work)
        ]

    monkeypatch.setattr(from_prior, "distil", spoilt)
    study = load(run(config({"warm_start": True}, train__rounds=3), tmp_path))
    events = study.events[study.events["kind"] == "diverged"]
    assert events[["round", "client_id"]].to_numpy().tolist() == [[2, 1]]
    assert "left out" in events["message"].iloc[0]
    assert set(study.synthetic_images(2).clients) == {0, 2}
    assert set(study.synthetic_images(3).clients) == {0, 1, 2}
    rounds = study.synthetic.groupby("round")["client_id"].agg(list)
    assert rounds.to_dict() == {1: [0, 1, 2], 2: [0, 2], 3: [0, 1, 2]}
    assert starts == {(r, c): r > 1 for r in (1, 2, 3) for c in range(3)}


def test_sets_made_in_smaller_parts_are_told(tmp_path: Path, monkeypatch: Any):
    real = from_prior.distil
    monkeypatch.setattr(
        from_prior, "distil", lambda work: [replace(one, crowded=True) for one in real(work)]
    )
    study = load(run(config(train__rounds=2), tmp_path))
    events = study.events[study.events["kind"] == "out_of_memory"]
    assert events["round"].tolist() == [1, 2]
    assert events["client_id"].isna().all()
    assert not study.runs["bit_comparable"].any()


@pytest.mark.parametrize("warm", [False, True])
def test_latents_go_on_from_a_client_s_last_round(tmp_path: Path, monkeypatch: Any, warm: bool):
    """Also over a round in which it did not take part."""
    real, given, made = from_prior.distil, list[Any](), dict[int, Any]()

    def watched(work: Any) -> Any:
        given.extend((s.client_id, s.latents, made.get(s.client_id)) for s in work.sources)
        found = real(work)
        made.update({one.client_id: one.latents for one in found})
        return found

    monkeypatch.setattr(from_prior, "distil", watched)
    settings = {"train__rounds": 5, "train__participation": 0.6}
    run(config({"warm_start": warm}, **settings), tmp_path)
    again = [(latents, last) for _, latents, last in given if last is not None]
    assert len(given) == 10
    assert len(again) == 7
    for latents, last in again:
        assert set(latents) == (set(last) if warm else set())
        assert all(torch.equal(latents[k], last[k]) for k in latents)


def test_replayed_sets_are_in_the_union(tmp_path: Path, monkeypatch: Any):
    trained: list[Any] = []
    real = trains_on_sets.train_on_images
    monkeypatch.setattr(
        trains_on_sets, "train_on_images", lambda work: trained.append(work.images) or real(work)
    )
    study = load(run(config({"replay": 1}, train__rounds=3), tmp_path))
    made = {r: study.synthetic_images(r).images[..., 0] for r in (1, 2, 3)}
    for number, rounds in enumerate([(1,), (1, 2), (2, 3)]):
        wanted = np.concatenate([made[r] for r in rounds])
        assert np.array_equal(trained[number][:, 0].numpy(), wanted)


def test_a_method_that_would_never_distil_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="warmup_rounds is 2 of 2 rounds"):
        run(config({"warmup_rounds": 2}), tmp_path)
    with pytest.raises(ConfigError, match="trajectory_rounds is 3, but there are 2 rounds"):
        run(config({"trajectory_rounds": 3}, use="dynafed"), tmp_path)


@pytest.mark.parametrize("use", ["feddgm", "dynafed"])
def test_a_round_s_images_are_measured_like_generated_ones(tmp_path: Path, use: str):
    options = {"trajectory_rounds": 1} if use == "dynafed" else {}
    settings = {"use": use, "models__clip": "tiny-clip", "distill__images_per_class": 2}
    settings["train__rounds"] = 1
    study = load(run(config(options, evaluation__set_quality=True, **settings), tmp_path))
    rows = study.synthetic
    whole, sets = rows[rows["client_id"].isna()], 3 if use == "feddgm" else 1
    assert len(whole) == 1
    assert rows["num_images"].dropna().tolist() == [20] * sets
    for name in ("clip_agreement", "diversity", "kid", "coverage", "nearest_similarity"):
        assert whole[name].notna().all()
        assert rows.loc[rows["client_id"].notna(), name].isna().all()
    shown = {title: value for title, _, value in synthetic_quality(study).rows}
    assert shown["sets"] == str(sets)
    assert shown["images"] == "20"
    assert float(shown["coverage, %"]) == pytest.approx(100 * whole["coverage"].iloc[0], abs=0.06)
    plain = load(run(config(options, **settings), tmp_path / "plain"))
    assert plain.synthetic["kid"].isna().all()


def test_what_cannot_be_measured_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"feddgm: evaluation.set_quality .* models.clip"):
        preflight([config(models__clip=None, evaluation__set_quality=True)], "cpu")


def test_a_client_whose_images_diverge_is_refused_by_name(tmp_path: Path, monkeypatch: Any):
    real, calls = feddm.FedDM._match, list[int]()

    def spoilt(self: Any, *args: Any) -> Any:
        images, labels = real(self, *args)
        calls.append(1)
        return images * (torch.nan if len(args[1]) == held else 1), labels

    one = config(use="feddm", train__rounds=1, failures__policy="drop")
    clean = load(run(one, tmp_path / "clean")).clients.query("round == 1")
    held = clean["num_samples"].iloc[1]
    assert (clean["num_samples"] == held).sum() == 1
    monkeypatch.setattr(feddm.FedDM, "_match", spoilt)
    study = load(run(one, tmp_path / "spoilt"))
    (message,) = study.events.loc[study.events["kind"] == "client_failed", "message"]
    assert "'images' are NaN" in message
    assert set(study.synthetic["client_id"]) == set(clean["client_id"]) - {
        clean["client_id"].iloc[1]
    }
    with pytest.raises(ClientError, match="NaN"):
        run(config(use="feddm", train__rounds=1), tmp_path / "raise")


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_dropped_client_is_as_if_it_had_never_been_sampled(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    """Bit by bit where it raised, for the others train again without it; a refused update was
    trained beside theirs, which rounds differently."""
    train = feddgm.FedDGM.client_update

    def failing(self: Any, message: Any, batches: Any, *args: Any) -> Any:
        hit = [c for c, client in enumerate(batches.client_ids) if client == 1]
        if hit and how == "raise":
            raise ValueError("the camera of this client is broken")
        update, states = train(self, message, batches, *args)
        update.delta["head.bias"][hit, 0] = torch.nan
        return update, states

    one = config({"average": True}, failures__policy="drop", engine__group_size=3)
    with monkeypatch.context() as patch:
        patch.setattr(feddgm.FedDGM, "client_update", failing)
        dropped = load(run(one, tmp_path / "dropped"))
    monkeypatch.setattr(round_loop, "sample_cohort", lambda *_: [0, 2])
    without = load(run(one, tmp_path / "without"))

    assert dropped.runs["status"].tolist() == ["finished"]
    assert dropped.rounds["num_clients_failed"].tolist() == [0, 1, 1]
    events = dropped.events[dropped.events["kind"] == "client_failed"]
    assert events[["round", "client_id"]].to_numpy().tolist() == [[1, 1], [2, 1]]
    reason = {"raise": "camera of this client is broken", "nan": "'head.bias' are NaN"}[how]
    assert events["message"].str.contains(reason).all()
    for study in (dropped, without):
        assert study.synthetic.groupby("round")["client_id"].agg(list).to_list() == [[0, 2]] * 2
    if how == "raise":
        found = {text.partition(":")[0] for text in equal_results(dropped, without)}
        counted = {"bytes_down", "num_clients_sampled", "num_clients_failed"}
        assert found == {"clients"} | {f"rounds.{name}" for name in counted}
    columns = ["match_loss_before", "match_loss_after"]
    np.testing.assert_allclose(dropped.synthetic[columns], without.synthetic[columns], rtol=1e-3)
    np.testing.assert_allclose(dropped.rounds["loss"], without.rounds["loss"], rtol=1e-4)
    for number in (1, 2):
        images = [s.synthetic_images(number).images.astype(int) for s in (dropped, without)]
        assert abs(images[0] - images[1]).max() <= 2


class Elsewhere(LocalExecutor):
    """Workers that have another device than the server."""

    def map(self, function: Any, items: Any) -> list[Any]:
        assert {item.device for item in items} == {self.device}
        return super().map(function, items)


@pytest.mark.parametrize("use", ["feddgm", "dynafed", "feddm", "feddm_sums"])
def test_server_work_is_done_on_the_workers_device(tmp_path: Path, use: str):
    own = {"trajectory_rounds": 1} if use == "dynafed" else {}
    one = federation(config(own, use=use), tmp_path)
    one.executor = Elsewhere("cpu:0")
    drive(one, lambda row: None)
    assert not load(tmp_path).synthetic.empty
