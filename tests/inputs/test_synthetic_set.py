"""The synthetic set: what is asked for, what is kept, what a kill leaves, and its keys."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.config import Experiment
from fedsim.errors import ConfigError, ModelError
from fedsim.inputs import draw_images
from fedsim.inputs.draw_images import BATCH, Drawer, Job, Recipe
from fedsim.inputs.synthetic_set import choose, synthetic_step
from fedsim.models.clip import Clip, load_clip
from fedsim.seeding import derive
from fedsim.storage.array_cache import Arrays, InputStep
from tests.helpers import experiment

NAMES = ("zero", "one", "two")
META: dict[str, Any] = {
    "classnames": list(NAMES),
    "templates": ["a photo of a {}", "a drawing of a {}"],
    "text": None,
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


@pytest.fixture(scope="module")
def text(clip: Clip) -> np.ndarray:
    return clip.class_embeddings(NAMES, META["templates"]).numpy()


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Pens:
    """Draws noise by prompt and seed; remembers what it was asked for, and may die."""

    def __init__(self, die_after: int = 10**9) -> None:
        self.jobs: list[Job] = []
        self.recipe: Recipe | None = None
        self._left = die_after

    def __call__(self, recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, np.ndarray]]:
        self.recipe = recipe
        for job in reversed(jobs):  # any order will do
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.jobs.append(job)
            pairs = zip(job.prompts, job.seeds, strict=True)
            yield job.number, np.stack([noise(*pair) for pair in pairs])

    @property
    def asked(self) -> dict[int, str]:
        """Seed -> prompt."""
        return {s: p for job in self.jobs for s, p in zip(job.seeds, job.prompts, strict=True)}


def noise(prompt: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, len(prompt)])
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)


def config(k: int = 2, **settings: Any) -> Experiment:
    models = {"clip": "tiny-clip", "generator": "tiny-diffusion"} | settings.pop("models", {})
    return experiment("digits", "cachefl", models=models, cache__images_per_class=k, **settings)


def step(
    asked: Experiment,
    text: np.ndarray | None = None,
    pens: Pens | None = None,
    meta: dict[str, Any] = META,
) -> InputStep:
    k, seed = asked.cache.images_per_class, asked.train_seed
    return synthetic_step(asked.models, asked.synthetic, k, seed, meta, text, draw=pens or Pens())


def made(text: np.ndarray | None, pens: Pens | None = None, **settings: Any) -> Arrays:
    return step(config(**settings), text, pens).arrays


def test_the_set_is_balanced_sorted_and_encoded(clip: Clip, text: np.ndarray):
    pens = Pens()
    found = made(text, pens, k=4, models={"generator_steps": 3, "generator_guidance": 2.0})
    assert pens.recipe == Recipe("tiny-diffusion", 3, 2.0)
    assert found["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found["index"].tolist() == [0, 1, 2, 3] * 3
    expected = [noise(f"a photo of a {NAMES[c]}", seed(c, i)) for c in range(3) for i in range(4)]
    assert np.array_equal(found["images"], expected)
    features = clip.encode_images(clip.prepare(found["images"])).numpy()
    assert np.array_equal(found["inputs"], features)
    assert np.array_equal(found["features"], features)
    agrees = (features @ text.T).argmax(1) == found["labels"]
    assert np.array_equal(found["drawn_agreement"], agrees.reshape(3, 4).mean(1))


def seed(label: int, index: int) -> int:
    return derive(0, "synthetic", label, index)


def test_templates_are_taken_in_turn(text: np.ndarray):
    pens = Pens()
    made(text, pens, k=3, synthetic__prompts=["x {}", "{} y"])
    for label, name in enumerate(NAMES):
        prompts = [pens.asked[seed(label, i)] for i in range(3)]
        assert prompts == [f"x {name}", f"{name} y", f"x {name}"]


def test_underscores_are_spaces_and_braces_are_left_alone(text: np.ndarray):
    pens, meta = Pens(), META | {"classnames": ["{a}", "b_c", "d"]}
    assert step(config(1), text, pens, meta).arrays
    assert sorted(pens.asked.values()) == ["a photo of a " + n for n in ("b c", "d", "{a}")]


def test_a_smaller_set_is_the_beginning_of_a_larger_one(text: np.ndarray):
    few, many = made(text, k=2), made(text, k=5)
    rows = [5 * c + i for c in range(3) for i in range(2)]
    assert np.array_equal(few["images"], many["images"][rows])


@pytest.mark.parametrize("filter", ["agreement", "similarity"])
def test_a_filter_chooses_among_what_a_larger_set_holds(filter: str, text: np.ndarray):
    k, per_image = 2, 6
    every = made(text, k=k * per_image)
    found = made(text, k=k, synthetic__filter=filter, synthetic__candidates_per_image=per_image)
    assert found["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    rows = found["labels"] * k * per_image + found["index"]
    for name in ("images", "inputs", "features"):
        assert np.array_equal(found[name], every[name][rows])
    assert np.array_equal(found["drawn_agreement"], every["drawn_agreement"])
    similarity = every["features"].astype(float) @ text.T.astype(float)
    own, agrees = similarity[range(36), every["labels"]], similarity.argmax(1) == every["labels"]
    for label in range(3):
        of_class = np.flatnonzero(every["labels"] == label)
        worth = own + (10 * agrees if filter == "agreement" else 0)
        best = sorted(of_class, key=lambda row: -worth[row])[:k]
        assert rows[found["labels"] == label].tolist() == best


def test_agreement_comes_before_similarity_and_ties_go_to_the_first():
    similarity = np.array([0.5, 0.9, 0.5, 0.1, 0.3, 0.3])
    agrees = np.array([False, False, True, True, False, False])
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert choose(similarity, agrees, labels, 3, "agreement")[:3].tolist() == [2, 3, 1]
    assert choose(similarity, agrees, labels, 2, "similarity").tolist() == [1, 0, 4, 5]


def test_a_filter_needs_something_to_judge_by():
    with pytest.raises(ConfigError, match="class embeddings"):
        made(None, synthetic__filter="similarity")
    assert np.isnan(made(None)["drawn_agreement"]).all()


def test_a_kill_costs_the_batch_in_flight(text: np.ndarray, store: Path):
    k = 40
    assert 3 * k > 3 * BATCH
    whole, first, second = Pens(), Pens(die_after=2), Pens()
    with pytest.raises(KeyboardInterrupt):
        made(text, first, k=k)
    found = made(text, second, k=k)
    assert sorted(job.number for job in first.jobs + second.jobs) == [0, 1, 2, 3]
    assert len(first.jobs) == 2
    assert [path for path in store.iterdir() if path.name.startswith(".parts")] == []
    again = made(text, Pens(die_after=0), k=k)  # from the store: nothing is drawn
    assert np.array_equal(again["images"], found["images"])
    for path in store.glob("*/"):
        path.rename(path.with_name("aside-" + path.name))
    uninterrupted = made(text, whole, k=k)
    assert uninterrupted.pop("draw_s") > 0
    for name, array in uninterrupted.items():
        assert np.array_equal(array, found[name]), name


def test_keys_are_means_of_views_that_belong_to_their_image(text: np.ndarray):
    views = {"synthetic__augment_views": 3}
    plain, few, many = made(text, k=2), made(text, k=2, **views), made(text, k=3, **views)
    assert np.array_equal(few["features"], plain["features"])
    assert np.allclose(np.linalg.norm(few["inputs"], axis=1), 1, atol=1e-6)
    assert np.abs(few["inputs"] - plain["inputs"]).max() > 1e-3
    rows = [3 * c + i for c in range(3) for i in range(2)]
    np.testing.assert_allclose(few["inputs"], many["inputs"][rows], atol=1e-6)
    flipped = made(text, k=2, **views, synthetic__augment_flip=True)
    assert np.abs(few["inputs"] - flipped["inputs"]).max() > 1e-3
    cosine = (few["inputs"] * plain["inputs"]).sum(1)
    assert cosine.min() > 0.5  # still the same picture


def test_the_name_follows_what_has_an_effect():
    def key(**settings: Any) -> dict[str, Any]:
        return step(config(**settings)).key

    same: list[dict[str, Any]] = [
        {"synthetic__candidates_per_image": 5},
        {"synthetic__augment_flip": True},
        {"synthetic__prompts": ["a photo of a {}"]},
        {"cache__sharpness": 1.0},
        {"seed": 3, "train__seed": 0},
    ]
    filtered, viewed = {"synthetic__filter": "similarity"}, {"synthetic__augment_views": 2}
    other: list[dict[str, Any]] = [
        {"k": 3},
        {"seed": 1},
        {"models": {"generator_steps": 2}},
        {"models": {"generator_guidance": 2.0}},
        {"models": {"generator": "stabilityai/sd-turbo"}},
        {"models": {"clip": "ViT-B-32/openai"}},
        {"synthetic__prompts": ["{}"]},
        {"synthetic__filter": "agreement"},
        filtered,
        filtered | {"synthetic__candidates_per_image": 5},
        viewed,
        {"synthetic__augment_views": 3},
        viewed | {"synthetic__augment_flip": True},
    ]
    assert all(key(**settings) == key() for settings in same)
    keys = [repr(key(**settings)) for settings in [{}, *other]]
    assert len(set(keys)) == len(keys)
    assert step(config(), meta=META | {"text": "digest"}).key != key()


def test_images_from_elsewhere(tmp_path: Path, clip: Clip, text: np.ndarray):
    rng = np.random.default_rng(0)
    pictures = {}
    for name in NAMES:
        (tmp_path / "made" / name.upper()).mkdir(parents=True)
        for n in range(3):
            size = (40 + 8 * n, 50, 3)  # of unequal sizes
            pictures[name, n] = Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8))
            pictures[name, n].save(tmp_path / "made" / name.upper() / f"{n}.png")
    models = {"generator": str(tmp_path / "made")}
    found = made(text, Pens(die_after=0), k=2, models=models)
    expected = clip.prepare([pictures[name, n] for name in NAMES for n in range(2)])
    assert np.array_equal(found["images"], expected.permute(0, 2, 3, 1))
    assert np.array_equal(found["inputs"], clip.encode_images(expected).numpy())
    crops = made(text, k=2, models=models, synthetic__augment_views=2)
    assert np.array_equal(crops["features"], found["features"])
    with pytest.raises(ModelError, match=r"class 'zero' has 3 of 4 images"):
        made(text, k=2, models=models, synthetic__filter="similarity")


class FakeGenerator:
    """Has room for two images."""

    def at(self, steps: int | None, guidance_scale: float | None) -> Any:
        assert (steps, guidance_scale) == (4, None)
        return self

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], batch_size: int) -> np.ndarray:
        assert batch_size == len(prompts)
        if len(prompts) > 2 or prompts[0] == "huge":
            raise torch.OutOfMemoryError("no room")
        return np.stack([noise(*pair) for pair in zip(prompts, seeds, strict=True)])


def test_what_does_not_fit_is_drawn_in_halves(monkeypatch: pytest.MonkeyPatch):
    loads = []

    def load(spec: str, device: str) -> FakeGenerator:
        loads.append((spec, device))
        return FakeGenerator()

    monkeypatch.setattr(draw_images, "load_generator", load)
    recipe, prompts, seeds = Recipe("big", 4), tuple("abcde"), (1, 2, 3, 4, 5)
    drawer = Drawer("cpu")
    assert list(drawer(recipe, [])) == []
    assert loads == []
    found = dict(drawer(recipe, [Job(7, prompts, seeds), Job(9, prompts[:1], seeds[:1])]))
    expected = [noise(*pair) for pair in zip(prompts, seeds, strict=True)]
    assert np.array_equal(found[7], expected)
    assert np.array_equal(found[9], expected[:1])
    assert loads == [("big", "cpu")]
    with pytest.raises(ModelError, match="single image on cpu"):
        list(drawer(recipe, [Job(0, ("huge",), (0,))]))
