"""CLIP: the loading path, pixels, features, and the tower under a client axis."""

import json
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.errors import DataError, ModelError
from fedsim.models.clip import PRETRAINED, Clip, load_clip

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, torch.Tensor]:
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return images, torch.from_numpy(data.target)


def official(spec: str, **settings):
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(spec, **settings)
    return model.eval(), transform, open_clip.get_tokenizer(spec)


def test_the_shipped_weights_are_those_open_clip_loads(clip, digits):
    folder = f"local-dir:{PRETRAINED / 'tiny-clip'}"
    model, transform, tokenizer = official(folder)
    images = torch.stack([transform(Image.fromarray(image)) for image in digits[0][:20]])
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True)
        texts = model.encode_text(tokenizer(["a photo of a seven"]), normalize=True)
    torch.testing.assert_close(clip.encode_images(clip.prepare(digits[0][:20])), expected)
    torch.testing.assert_close(clip.encode_texts(["a photo of a seven"]), texts)
    assert clip.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))


def test_what_a_clip_says_of_itself(clip):
    assert (clip.embed_dim, clip.image_size) == (64, 32)
    parameters = sum(p.numel() for p in clip.visual.parameters())
    assert clip.visual_bytes == 4 * parameters
    others = sum(p.numel() for p in clip.model.parameters()) - parameters - 1  # the temperature
    assert clip.text_bytes == 4 * others
    assert not clip.visual.training
    assert not any(p.requires_grad for p in clip.visual.parameters())
    assert list(clip.visual.buffers()) == []  # nothing that federated averaging would miss


RAW = {
    "small grey": lambda rng: rng.integers(0, 256, (3, 8, 8), dtype=np.uint8),
    "wide colour": lambda rng: rng.integers(0, 256, (2, 40, 60, 3), dtype=np.uint8),
    "pictures": lambda rng: [
        Image.fromarray(rng.integers(0, 256, (50, 33, 3), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 256, (20, 70), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).convert("P"),
    ],
}


@pytest.mark.parametrize("kind", RAW)
def test_prepare_then_normalise_is_the_official_transform(clip, kind):
    raw = RAW[kind](np.random.default_rng(0))
    _, transform, _ = official(f"local-dir:{PRETRAINED / 'tiny-clip'}")
    pictures = [Image.fromarray(x) if isinstance(x, np.ndarray) else x for x in raw]
    expected = torch.stack([transform(picture) for picture in pictures])
    pixels = clip.prepare(raw)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (len(raw), 3, 32, 32)
    assert torch.equal(clip.normalise(pixels), expected)


@pytest.mark.parametrize(
    "raw",
    [np.zeros((2, 8, 8), np.float32), np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)],
)
def test_other_arrays_are_refused(clip, raw):
    with pytest.raises(DataError, match="must be uint8"):
        clip.prepare(raw)


def test_features_have_length_one_and_do_not_depend_on_the_batch(clip, digits):
    pixels = clip.prepare(digits[0][:50])
    features = clip.encode_images(pixels)
    assert features.shape == (50, 64)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(clip.encode_images(pixels, batch_size=7), features)
    assert clip.encode_images(pixels[:0]).shape == (0, 64)


def test_class_embeddings_average_templates_on_the_sphere(clip):
    templates = ["a photo of a {}", "the number {}"]
    found = clip.class_embeddings(["letter_a", "two"], templates)
    for row, name in zip(found, ["letter a", "two"], strict=True):
        mean = clip.encode_texts([t.format(name) for t in templates]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm())


def test_zero_shot_reads_handwriting_it_never_saw(clip, digits):
    images, labels = digits
    texts = clip.class_embeddings(DIGITS, ["a photo of a {}"])
    features = clip.encode_images(clip.prepare(images))
    accuracy = (clip.logit_scale * features @ texts.T).argmax(1).eq(labels).float().mean()
    assert 0.5 < accuracy < 0.95  # the domain gap is real: there is something left to learn


def test_the_tower_trains_under_a_client_axis(clip, digits):
    num_clients, batch = 3, 8
    images, labels = digits
    pixels = clip.prepare(images[: num_clients * batch]).view(num_clients, batch, 3, 32, 32)
    targets = labels[: num_clients * batch].view(num_clients, batch)
    texts = clip.class_embeddings(DIGITS, ["a photo of a {}"])
    noise = torch.Generator().manual_seed(0)
    stacked = {
        name: p + 0.01 * torch.randn(num_clients, *p.shape, generator=noise)
        for name, p in clip.visual.named_parameters()
    }

    def loss(parameters, pixels, targets):
        raw = functional_call(clip.visual, parameters, (clip.normalise(pixels),))
        features = torch.nn.functional.normalize(raw, dim=-1)
        return torch.nn.functional.cross_entropy(clip.logit_scale * features @ texts.T, targets)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "no batching rule" would be a silent loop
        together = vmap(grad(loss))(stacked, pixels, targets)
    for client in range(num_clients):
        own = {name: p[client] for name, p in stacked.items()}
        alone = grad(loss)(own, pixels[client], targets[client])
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][client], gradient, rtol=1e-3, atol=1e-5)


def test_a_clip_can_be_sent_to_another_process(clip, digits):
    copy = pickle.loads(pickle.dumps(clip))
    pixels = clip.prepare(digits[0][:4])
    assert torch.equal(copy.encode_images(pixels), clip.encode_images(pixels))


def test_loading_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    load_clip("tiny-clip")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_local_folder_loads_like_the_shipped_model(tmp_path, digits, clip):
    shutil.copytree(PRETRAINED / "tiny-clip", tmp_path / "mine")
    mine = load_clip(str(tmp_path / "mine"))
    pixels = clip.prepare(digits[0][:4])
    assert torch.equal(mine.encode_images(pixels), clip.encode_images(pixels))


def test_a_checkpoint_from_disk_fills_a_named_architecture(tmp_path, clip):
    import open_clip

    config = json.loads((PRETRAINED / "tiny-clip" / "open_clip_config.json").read_text())
    (tmp_path / "fedsim-test.json").write_text(json.dumps(config["model_cfg"]))
    open_clip.add_model_config(tmp_path)
    weights = PRETRAINED / "tiny-clip" / "open_clip_model.safetensors"
    mine = load_clip(f"fedsim-test@{weights}")
    assert torch.equal(mine.encode_texts(["letter q"]), clip.encode_texts(["letter q"]))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tiny-clop", "did you mean 'tiny-clip'"),
        ("ViT-B-31/openai", "did you mean 'ViT-B-3"),
        ("ViT-B-32/openia", "did you mean 'openai'"),
        ("ViT-B-32", "names no weights.*openai"),
        ("ViT-B-32@nowhere.pt", "no checkpoint file"),
    ],
)
def test_a_wrong_name_gets_a_hint(spec, says):
    with pytest.raises(ModelError, match=says):
        load_clip(spec)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="has no open_clip_config.json"):
        load_clip(str(tmp_path))
    shutil.copy(PRETRAINED / "tiny-clip" / "open_clip_config.json", tmp_path)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_clip(str(tmp_path))


def test_an_unreachable_hub_is_explained(monkeypatch):
    import open_clip.factory

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", refuse)
    with pytest.raises(ModelError, match="no route to host[^$]*local folder") as caught:
        load_clip("ViT-B-32/openai")
    assert caught.value.__cause__ is not None


@pytest.mark.slow
def test_a_public_architecture_runs_at_its_real_size():
    clip = load_clip("ViT-B-32/random")
    assert (clip.embed_dim, clip.image_size) == (512, 224)
    assert clip.visual_bytes == pytest.approx(351e6, rel=0.01)
    rng = np.random.default_rng(0)
    pixels = clip.prepare(rng.integers(0, 256, (2, 100, 120, 3), dtype=np.uint8))
    assert clip.encode_images(pixels).shape == (2, 512)
    again = load_clip("ViT-B-32/random")
    assert torch.equal(again.encode_texts(["a dog"]), clip.encode_texts(["a dog"]))


def test_openai_weights_get_their_own_activation(monkeypatch):
    import open_clip

    asked = {}

    def record(name, **settings):
        asked.update(settings)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", record)
    with pytest.raises(ModelError):
        load_clip("ViT-B-32/openai")
    assert asked["force_quick_gelu"] is True
    with pytest.raises(ModelError):
        load_clip("ViT-B-32/laion2b_s34b_b79k")
    assert asked["force_quick_gelu"] is False


def test_clients_of_their_own_weights_need_no_copies_of_them():
    """torch would copy the weights of attention's first layer once per token."""
    tower = load_clip("tiny-clip").visual
    weights = {
        name: torch.stack([p.detach()] * 3).requires_grad_() for name, p in tower.named_parameters()
    }
    x = torch.randn(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    largest = max(3 * max(p[0].numel() for p in weights.values()), 3 * 2 * 3 * 32 * 32 * 4)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            for made in found if isinstance(found, tuple | list) else [found]:
                if isinstance(made, torch.Tensor):
                    size = made.untyped_storage().nbytes() // made.element_size()
                    assert size <= largest, (func, made.shape)
            return found

    with Sizes():
        found = vmap(lambda params, images: functional_call(tower, params, (images,)))(weights, x)
    torch.testing.assert_close(found[1], tower(x[1]), rtol=1e-4, atol=1e-5)
