from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.config.distill import DistillConfig
from fedsim.distill.priors.base import Prompts
from fedsim.distill.priors.decode import decode_all, decode_with_way_back, fit
from fedsim.distill.priors.load import class_prompts, load_prior
from fedsim.errors import ConfigError, ModelError

WORDS = ("zero", "one", "two")
PROMPTS = Prompts("tiny-diffusion", class_prompts(WORDS, "a photo of a {}"), 2)
SHAPE = (1, 28, 28)
LABELS = torch.tensor([0, 1, 1, 2])

GAN = """
import torch

class Gan:
    def map_labels(self, labels, rng):
        w = torch.randn(len(labels), 2, 4, generator=rng) + labels[:, None, None]
        return w * float({scale})

    def features(self, w, layer):
        return w[:, 0, :, None, None].expand(-1, -1, 4, 4) * layer

    def synthesize(self, w, f, layer):
        f = self.features(w, 1) if f is None else f
        return torch.tanh(f[:, :3] + w[:, 1, :3, None, None])

def make(device):
    return Gan()

def wrong(device):
    return object()
"""


def prior(**settings: Any):
    return load_prior(DistillConfig(**settings), PROMPTS, SHAPE, "cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def gan_file(tmp_path: Path) -> Path:
    path = tmp_path / "gan.py"
    path.write_text(GAN.replace("{scale}", "1"))
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": "pixels", "init": "noise"},
        {"prior": "pixels"},
        {"prior": "vae"},
        {"prior": "vae", "init": "noise", "weights": "random"},
        {"prior": "vae", "layer": 3},
        {"prior": "diffusion"},
    ],
)
def test_every_prior_draws_decodes_and_has_gradients(settings: dict[str, Any]):
    chosen = prior(**settings)
    latents = chosen.draw(LABELS, rng())
    again = chosen.draw(LABELS, rng())
    assert all(torch.equal(latents[k], again[k]) for k in latents)
    assert all(len(v) == len(LABELS) for v in latents.values())
    assert chosen.maps <= set(latents)
    images = decode_all(chosen, latents)
    assert images.shape == (4, *SHAPE)
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    weight = torch.randn(images.shape, generator=rng(1))
    decoded, way_back = decode_with_way_back(chosen, latents)
    torch.testing.assert_close(decoded, images)
    assert not decoded.requires_grad
    pulled = way_back(weight)
    assert all(float(g.norm()) > 0 for g in pulled.values())
    # A small step along the gradient changes <images, weight> as the gradient says.
    norm = torch.stack([g.square().sum() for g in pulled.values()]).sum()
    size = 1e-3 / float(norm.sqrt())
    ahead, behind = (
        decode_all(chosen, {k: v + sign * size * pulled[k] for k, v in latents.items()})
        for sign in (1, -1)
    )
    slope = ((ahead - behind) * weight).sum() / (2 * size)
    assert float(slope) == pytest.approx(float(norm), rel=0.05)


@pytest.mark.parametrize("chunk", [2, 32])
def test_a_thawed_decoder_s_weights_have_gradients_too(chunk: int, monkeypatch: pytest.MonkeyPatch):
    frozen = prior(prior="vae")
    monkeypatch.setattr(frozen, "at_once", chunk)
    own = frozen.thawed()
    latents = frozen.draw(LABELS, rng())
    before = decode_all(frozen, latents)
    images, way_back = decode_with_way_back(own, latents)
    assert torch.equal(images, before)
    weight = torch.randn(images.shape, generator=rng(1))
    torch.testing.assert_close(
        way_back(weight), decode_with_way_back(frozen, latents)[1](weight), rtol=1e-4, atol=1e-5
    )
    # A small step of the weights along their gradient changes <images, weight> as that says.
    norm = sum(float(w.grad.square().sum()) for w in own.weights)
    size = 1e-3 / norm**0.5
    with torch.no_grad():
        for w in own.weights:
            w += size * w.grad
    slope = ((decode_all(own, latents) - before) * weight).sum() / size
    assert float(slope) == pytest.approx(norm, rel=0.05)
    assert torch.equal(decode_all(frozen, latents), before), "the pretrained decoder stays"
    assert not frozen.weights


def test_the_way_back_is_the_same_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch):
    chosen = prior(prior="vae")
    latents = chosen.draw(LABELS, rng())
    whole, whole_back = decode_with_way_back(chosen, latents)
    assert chosen.at_once == 256  # of 32x32 pixels
    monkeypatch.setattr(chosen, "at_once", 3)
    parts, parts_back = decode_with_way_back(chosen, latents)
    weight = torch.randn(whole.shape, generator=rng(1))
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(whole_back(weight), parts_back(weight))


def test_a_layer_s_feature_map_decodes_to_the_same_images():
    latent, feature = prior(prior="vae"), prior(prior="vae", layer=2)
    a, b = latent.draw(LABELS, rng()), feature.draw(LABELS, rng())
    assert (latent.maps, feature.maps) == (frozenset(), frozenset({"feature"}))
    torch.testing.assert_close(decode_all(latent, a), decode_all(feature, b))


def test_random_weights_draw_other_images_and_always_the_same():
    load_prior.cache_clear()
    first = decode_all(prior(weights="random"), prior(weights="random").draw(LABELS, rng()))
    load_prior.cache_clear()
    again = decode_all(prior(weights="random"), prior(weights="random").draw(LABELS, rng()))
    assert torch.equal(first, again)
    known = decode_all(prior(), prior().draw(LABELS, rng()))
    assert float((first - known).abs().mean()) > 0.1


def test_the_denoiser_s_images_are_the_classes(tmp_path: Path):
    """Its own few deterministic steps draw what the pipeline draws: images of a class are alike."""
    labels = torch.arange(3).repeat_interleave(6)
    for settings in ({"prior": "diffusion"}, {"prior": "vae"}):
        chosen = load_prior(
            DistillConfig(**settings), Prompts("tiny-diffusion", PROMPTS.texts), SHAPE, "cpu"
        )
        flat = decode_all(chosen, chosen.draw(labels, rng())).flatten(1)
        flat = torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True))
        cosine = flat @ flat.T
        same = (labels[:, None] == labels) & ~torch.eye(18, dtype=torch.bool)
        assert cosine[same].mean() > cosine[labels[:, None] != labels].mean() + 0.1


def test_a_gan_of_the_user(gan_file: Path):
    plain = prior(prior=f"{gan_file}:make")
    latents = plain.draw(LABELS, rng())
    assert set(latents) == {"w"}
    deep = prior(prior=f"{gan_file}:make", layer=2)
    latents = deep.draw(LABELS, rng())
    assert set(latents) == {"w", "f"}
    assert deep.maps == {"f"}
    pulled = decode_with_way_back(deep, latents)[1](torch.ones(4, *SHAPE))
    assert float(pulled["w"].norm()) > 0
    assert float(pulled["f"].norm()) > 0


def test_a_gan_s_features_start_finite_and_bounded(gan_file: Path):
    gan_file.write_text(GAN.replace("{scale}", "1e30 * 1e30"))
    f = prior(prior=f"{gan_file}:make", layer=1).draw(LABELS, rng())["f"]
    assert torch.isfinite(f).all()
    assert float(f.abs().max()) <= 10


def test_wrong_priors_say_what_to_do(gan_file: Path):
    with pytest.raises(ConfigError, match="stages 0 to 5"):
        prior(layer=9)
    with pytest.raises(ConfigError, match="takes 2 steps"):
        prior(prior="diffusion", denoising_steps=3)
    with pytest.raises(ConfigError, match="did you mean 'make'"):
        prior(prior=f"{gan_file}:mak")
    with pytest.raises(ConfigError, match="without map_labels, features, synthesize"):
        prior(prior=f"{gan_file}:wrong")
    with pytest.raises(ConfigError, match="no file .*gam.py"):
        prior(prior=f"{gan_file.with_name('gam.py')}:make")
    with pytest.raises(ConfigError, match="models.generator"):
        load_prior(DistillConfig(), Prompts(None, PROMPTS.texts), SHAPE, "cpu")
    with pytest.raises(ModelError, match="no generator"):
        load_prior(DistillConfig(), Prompts("tiny-difusion", PROMPTS.texts), SHAPE, "cpu")
    with pytest.raises(ValueError, match="unknown name"):
        DistillConfig(prior="vea")


def test_fit_is_differentiable_and_keeps_what_fits():
    x = torch.rand(2, 3, 6, 6, generator=rng(), dtype=torch.float64) * 1.6 - 0.8
    assert torch.equal(fit(x, (3, 6, 6)), x)
    grey = fit(x, (1, 6, 6))
    torch.testing.assert_close(grey[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    assert torch.equal(fit(grey, (3, 6, 6))[:, 2], grey[:, 0])
    assert torch.autograd.gradcheck(lambda x: fit(x, (1, 4, 5)), [x.requires_grad_()])
