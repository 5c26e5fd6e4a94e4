"""The order of update steps, and steps from outside the package on their way through a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsim.config.families import UPDATE_STEPS
from fedsim.engine.update_steps.base import Place, UpdateStep
from fedsim.engine.update_steps.pipeline import Pipeline
from fedsim.errors import ClientError, ConfigError
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from tests.helpers import experiment, federation, run, write_features

CLIP = '''
"""Every client's update has at most this length."""

from dataclasses import replace

from fedsim.engine.update_steps.base import Place, UpdateStep


class Clip(UpdateStep):
    place = Place.CLIP

    def on_clients(self, sent, group):
        return replace(sent, update=sent.update.clipped(0.001))
'''

MEDIAN = '''
"""A robust rule: the median of the clients' updates, entry by entry."""

from dataclasses import replace

import torch

from fedsim.engine.update_steps.base import Place, UpdateStep


class Median(UpdateStep):
    place = Place.WEIGH
    one_by_one = True

    def on_server(self, received, method, download):
        names = received.kept[0][1].delta
        every = {k: torch.cat([update.delta[k] for _, update in received.kept]) for k in names}
        return replace(received, mean={k: v.median(0).values for k, v in every.items()})
'''

COUNT = '''
"""What a step keeps of a client, and what it sends beside the update."""

from dataclasses import replace

import torch

from fedsim.engine.update_steps.base import Place, UpdateStep


class Count(UpdateStep):
    place = Place.NOISE
    seen = []

    def on_clients(self, sent, group):
        times = torch.stack([kept.get("times", torch.zeros(())) for kept in group.kept]) + 1
        return replace(sent, kept={"count": {"times": times}}, beside={"count": {"times": times}})

    def on_server(self, received, method, download):
        self.seen.append(float(received.beside["count"]["times"]))
        return received
'''


def add(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One new file, and one line."""
    file = folder / f"{name}.py"
    file.write_text(text)
    monkeypatch.setitem(UPDATE_STEPS, name, f"{file}:{name.capitalize()}")


def test_steps_go_by_their_place():
    class First(UpdateStep):
        place = Place.ALTER

    class Last(UpdateStep):
        place = Place.WEIGH

    class Middle(UpdateStep):
        place = Place.COMPRESS

    pipeline = Pipeline({"a": Last(), "b": Middle(), "c": First(), "d": Middle()})
    assert list(pipeline.steps) == ["c", "b", "d", "a"]


def test_an_experiment_has_the_steps_that_it_asks_for(tmp_path: Path):
    data = write_features(tmp_path)
    assert not Pipeline.of(experiment(data)).steps
    both = experiment(data, wire__compression="int8", server__class_weighting=0.5)
    assert list(Pipeline.of(both).steps) == ["compression", "class_weighting"]


def test_a_step_from_outside_bounds_every_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = experiment(write_features(tmp_path), "fedavg_head")
    free = load(run(config, tmp_path / "free"))
    add("clip", CLIP, tmp_path, monkeypatch)
    bound = load(run(config, tmp_path / "bound"))
    assert free.rounds.update_norm.iloc[1] > 0.01
    assert 0 < bound.rounds.update_norm.iloc[1] <= 0.001
    trained = bound.clients[bound.clients["round"] == 1]
    assert (trained.update_norm > 0.01).all()  # the table says what clients have trained


def test_a_robust_rule_sees_updates_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add("median", MEDIAN, tmp_path, monkeypatch)
    config = experiment(write_features(tmp_path), "fedavg_head", train__rounds=1)
    study = load(run(config, tmp_path / "out"))
    assert study.rounds.update_norm.iloc[1] > 0
    again = load(run(config, tmp_path / "again"))
    assert equal_results(study, again) == []


def test_what_a_step_keeps_comes_back_and_survives_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    add("count", COUNT, tmp_path, monkeypatch)
    config = experiment(write_features(tmp_path), "fedavg_head", train__rounds=4)
    first = federation(config, tmp_path / "out")
    first.setup()
    first.step()
    first.step()
    first.abort("interrupted")
    step = first._pipeline.steps["count"]
    run(config, tmp_path / "out")
    assert step.seen == [1, 2, 3, 4]  # type: ignore[attr-defined]


def test_a_step_has_generators_of_its_own(tmp_path: Path):
    from fedsim.engine.update_steps.base import GroupContext

    context = GroupContext(None, {}, None, 3, 0)  # type: ignore[arg-type]
    draws = {
        (purpose, client): torch.rand(1, generator=context.rng(purpose, client)).item()
        for purpose in ("noise", "attack")
        for client in (0, 1)
    }
    assert len(set(draws.values())) == 4


BREAKS = """
from dataclasses import replace

import torch

from fedsim.engine.update_steps.base import Place, UpdateStep


class Breaks(UpdateStep):
    place = Place.NOISE

    def on_clients(self, sent, group):
        update = sent.update
        match HOW:
            case "name":
                delta = {"new": torch.zeros(len(update.weight), 2)}
                return replace(sent, update=replace(update, delta=update.delta | delta))
            case "drop":
                return replace(sent, update=replace(update, delta={}))
            case "dtype":
                delta = {k: v.double() for k, v in update.delta.items()}
                return replace(sent, update=replace(update, delta=delta))
            case "weight":
                return replace(sent, update=replace(update, weight=update.weight[:1]))
            case "other":
                return replace(sent, kept={"other": update.delta})
            case "lost":
                return replace(sent, beside={})
"""


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("name", "made .* of tensor 'new', which was None"),
        ("drop", "made None of tensor 'head'"),
        ("dtype", "made .*float64.* of tensor 'head', which was .*float32"),
        ("weight", r"made weights of shape \(1,\)"),
        ("other", "has kept under 'other': use its own name"),
        ("none", "returned a NoneType"),
    ],
)
def test_a_step_that_breaks_an_update_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, text: str
):
    add("breaks", f"HOW = {how!r}\n{BREAKS}", tmp_path, monkeypatch)
    with pytest.raises(ClientError, match=f"update step 'breaks' {text}"):
        run(experiment(write_features(tmp_path), "fedavg_head"), tmp_path / "out")


def test_class_weighting_goes_with_a_rule_on_single_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = experiment(write_features(tmp_path), "fedavg_head", server__class_weighting=1.0)
    summed = load(run(config, tmp_path / "summed"))
    add("mean", MEAN, tmp_path, monkeypatch)
    one_by_one = load(run(config, tmp_path / "single"))
    assert one_by_one.rounds.loss.tolist() == pytest.approx(summed.rounds.loss.tolist(), rel=1e-5)


MEAN = """
from dataclasses import replace

from fedsim.engine.update_steps.base import Place, UpdateStep


class Mean(UpdateStep):
    place = Place.WEIGH
    one_by_one = True

    def on_server(self, received, method, download):
        return replace(received, mean=received.average())
"""


def test_a_step_from_outside_is_part_of_a_run_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = experiment(write_features(tmp_path), "fedavg_head")
    names = [config.run_id]
    add("clip", CLIP, tmp_path, monkeypatch)
    names.append(config.run_id)
    (tmp_path / "clip.py").write_text(CLIP.replace("0.001", "0.0001"))
    names.append(config.run_id)
    assert len(set(names)) == 3


def test_a_step_without_a_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add("clip", CLIP.replace("    place = Place.CLIP\n", ""), tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="'clip' .* has no place"):
        Pipeline.of(experiment(write_features(tmp_path), "fedavg_head"))


def test_clipping_nothing_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add("clip", CLIP, tmp_path, monkeypatch)
    study = load(run(experiment(write_features(tmp_path), "local_only"), tmp_path / "out"))
    assert study.runs.status.tolist() == ["finished"]
