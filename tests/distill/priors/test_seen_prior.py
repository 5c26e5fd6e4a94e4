"""The prior of experiments/feddgm_mnist that has seen MNIST."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.config.distill import DistillConfig
from fedsim.distill.priors.base import Prompts
from fedsim.distill.priors.decode import decode_with_way_back
from fedsim.distill.priors.load import load_prior
from fedsim.errors import ConfigError

FILE = Path(__file__).parents[3] / "experiments" / "feddgm_mnist" / "mnist_vae.py"
SHAPE = (1, 28, 28)
SETTINGS = DistillConfig(prior=f"{FILE}:make", layer=0, prior_saw_data=True)


def test_it_draws_digits_of_the_class(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATA", str(shared_data))
    prior = load_prior(SETTINGS, Prompts(None, ()), SHAPE, "cpu")
    labels = torch.arange(10).repeat_interleave(5)
    latents = prior.draw(labels, torch.Generator().manual_seed(0))
    images, way_back = decode_with_way_back(prior, latents)
    assert images.shape == (50, *SHAPE)
    # Judged by what real digits look like: the class mean nearest to an image is its own.
    with np.load(shared_data / "mnist_20clients.npz") as archive:
        x, y = archive["x"][:5000], torch.from_numpy(archive["y"][:5000].astype(int))
    real = torch.from_numpy(x).float().div(127.5).sub(1).flatten(1)
    means = torch.stack([real[y == c].mean(0) for c in range(10)])
    nearest = torch.cdist(images.flatten(1), means).argmin(1)
    assert float((nearest == labels).float().mean()) > 0.7
    assert float(way_back(images)["w"].norm()) > 0


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATA", raising=False)
    load_prior.cache_clear()
    with pytest.raises(ConfigError, match="set DATA to the folder"):
        load_prior(SETTINGS, Prompts(None, ()), SHAPE, "cpu")
