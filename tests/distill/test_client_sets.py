"""Distilling sets of several clients: what fits in memory, and what a control tells."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsim.config.distill import DistillConfig
from fedsim.distill import client_sets
from fedsim.distill.client_sets import ClientMove, Distillation, distil
from fedsim.distill.distilled_set import SyntheticSet
from fedsim.distill.priors.pixels import NoisePixels
from fedsim.distill.trajectory import NetworkStudent
from fedsim.params import unstack
from tests.distill.nets import SIDE, network, weights


def work(num_clients: int = 5, **settings: Any) -> Distillation:
    shape = (1, SIDE, SIDE)
    start = {k: v[0].float() for k, v in weights(1).items()}
    moved = weights(num_clients, seed=1)
    sources = tuple(
        ClientMove(
            c, ((start, {k: v + 0.1 * moved[k][c].float() for k, v in start.items()}),), (0, 2)
        )
        for c in range(num_clients)
    )
    given = {"prior": "pixels", "init": "noise", "images_per_class": 1, "latent_steps": 2}
    config = DistillConfig(**(given | {"student_steps": 2, "student_lr": 0.05} | settings))
    prior = lambda: NoisePixels(shape)  # noqa: E731
    return Distillation(sources, network, config, prior, prior, seed=0, round=1)


def test_what_does_not_fit_in_memory_is_made_in_parts(monkeypatch: pytest.MonkeyPatch):
    whole, together = distil(work()), client_sets._together
    sizes: list[int] = []

    def small(item: Distillation) -> list[SyntheticSet]:
        sizes.append(len(item.sources))
        if len(item.sources) > 2:
            raise torch.OutOfMemoryError("3 do not fit")
        return together(item)

    monkeypatch.setattr(client_sets, "_together", small)
    found = distil(work())
    assert sizes == [5, 3, 2, 1, 2]
    assert [one.client_id for one in found] == [0, 1, 2, 3, 4]
    assert all(one.crowded for one in found)
    assert not any(one.crowded for one in whole)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one.images, other.images, atol=1e-4, rtol=0)


def test_a_single_client_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def full(item: Distillation) -> list[SyntheticSet]:
        raise torch.OutOfMemoryError("1 does not fit")

    monkeypatch.setattr(client_sets, "_together", full)
    with pytest.raises(torch.OutOfMemoryError):
        distil(work(2))


@pytest.mark.parametrize(("loss", "terms"), [("trajectory", 1), ("gradient", 2 + 1 + 3 + 1)])
def test_a_control_is_judged_per_distance_that_its_loss_adds_up(loss: str, terms: int):
    (found,) = distil(work(1, loss=loss))
    assert found.terms == terms
    assert replace(found, loss_noise=0.09 * terms).uninformative
    assert not replace(found, loss_noise=0.11 * terms).uninformative


def test_noise_is_judged_at_a_step_size_that_suits_it():
    """A client that noise explains, and a set whose own step size is far from what noise needs."""
    item = work(1, student_lr="auto", latent_steps=0)
    run = client_sets._Run(item)
    run.log_lr = torch.tensor([math.log(0.08)])
    start, moved = run._segments[0]
    lesson = run._lesson(run.noise(), run._fixed_steps(), start, moved)
    end = NetworkStudent(network).path(lesson)[-1]
    explained = ClientMove(0, ((unstack(start, 0), unstack(end, 0)),), (0, 2), lr=0.08 / 64)
    (found,) = distil(replace(item, sources=(explained,)))
    assert found.lr == pytest.approx(0.08 / 64)  # the control leaves the set's alone
    assert found.loss_noise == pytest.approx(0, abs=1e-6)
    assert found.uninformative
    given = item.settings.model_copy(update={"student_lr": 0.08 / 64})
    (fixed,) = distil(replace(item, sources=(explained,), settings=given))
    assert fixed.loss_noise > 0.5


@pytest.mark.parametrize(
    ("diverges_above", "best", "moved", "found"),
    [
        (0.05, 1.0, 0.0, 0.04),  # it hardly moves: larger steps are wanted, up to where it diverges
        (0.05, 0.02, 1.0, 0.02),
        (0.015, 0.0025, 1.0, 0.0025),  # the first larger one diverges, smaller ones are better
        (0.005, 0.0025, 1.0, 0.0025),  # also the first of all does, and half of it
        (0.003, 0.01, 1.0, 0.0025),
    ],
)
def test_the_search_for_a_step_size_keeps_away_from_where_the_student_diverges(
    monkeypatch: pytest.MonkeyPatch, diverges_above: float, best: float, moved: float, found: float
):
    run = client_sets._Run(work(1, student_lr="auto"))

    def tried(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lr = run.log_lr.exp()
        loss = (lr.log() - math.log(best)).abs() + 0.1
        return torch.where(lr > diverges_above, torch.nan, loss), torch.full((1,), moved)

    monkeypatch.setattr(run, "_try", tried)
    run.search_lr(run.images())
    assert float(run.log_lr.exp()) == pytest.approx(found)
