from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fedsim.config.distill import DistillConfig

WRITTEN = {
    "prior": "vae",
    "weights": "pretrained",
    "prior_saw_data": False,
    "words": None,
    "init": "generated",
    "layer": 0,
    "denoising_steps": 1,
    "images_per_class": 10,
    "latent_steps": 100,
    "optimizer": "sgd",
    "latent_lr": 1.0,
    "feature_lr": 1000.0,
    "generator_lr": 0.0,
    "loss": "trajectory",
    "gradient": "constant",
    "distance": "squared",
    "student_steps": 20,
    "student_batch": None,
    "student_lr": 0.01,
    "student_lr_lr": 0.1,
    "augment": ["color", "crop", "cutout", "flip", "scale", "rotate"],
    "clients_at_once": 1,
}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({}, {}),
        ({"layer": 0, "generator_lr": 0.0, "words": None}, {}),
        ({"words": ["a", "b"], "layer": 2}, {"words": ["a", "b"], "layer": 2}),
        ({"prior": "pixels", "layer": 2}, {"prior": "pixels", "layer": 2}),  # it reads no layer
        ({"prior": "gans/mine.py:make", "layer": 3}, {"prior": "gans/mine.py:make", "layer": 3}),
        ({"generator_lr": 0.1, "init": "noise"}, {"generator_lr": 0.1, "init": "noise"}),
    ],
)
def test_dumps_are_those_of_older_versions(given: dict[str, Any], written: dict[str, Any]):
    """Names of runs are made of them."""
    assert DistillConfig(**given).model_dump(mode="json") == WRITTEN | written
    assert DistillConfig.model_validate(WRITTEN | written) == DistillConfig(**given)


def test_a_prior_reads_its_own_options_alone():
    shared = {"layer": 2, "denoising_steps": 3, "init": "noise"}
    read = {
        "vae": {"layer": 2, "init": "noise", "generator_lr": 0.0},
        "pixels": {"init": "noise"},
        "diffusion": {"denoising_steps": 3},
    }
    of_all = {"weights": "pretrained", "words": None}
    for prior, own in read.items():
        assert DistillConfig(prior=prior, **shared).options().model_dump() == own | of_all
    gan = DistillConfig(prior="mine.py:make", **shared)
    assert gan.options().model_dump() == {"layer": 2}
    assert gan.unread() == ["denoising_steps", "init"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer": -1}, "greater than or equal to 0"),
        ({"prior": "pixels", "layer": -1}, "greater than or equal to 0"),
        ({"layr": 1}, "Extra inputs"),
        ({"prior": "pixels", "generator_lr": 0.1}, "decoder of prior vae, not 'pixels'"),
        ({"generator_lr": 0.1, "clients_at_once": 2}, "set it to 1"),
        ({"augment": ["crop", "crop"]}, "twice"),
        ({"student_lr": 0.0}, "above 0, or auto"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        DistillConfig(**given)
