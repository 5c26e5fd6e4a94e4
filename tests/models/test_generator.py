"""The generator: loading, and pictures that show what was asked for, again and again."""

import json
import shutil

import numpy as np
import pytest
import torch

from fedsim.errors import ModelError
from fedsim.models.clip import load_clip
from fedsim.models.generator import PRETRAINED, Generator, load_generator

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FOLDER = PRETRAINED / "tiny-diffusion"


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator("tiny-diffusion")


@pytest.fixture(scope="module")
def pictures(generator) -> np.ndarray:
    """12 of each digit: (120, 32, 32, 3)."""
    prompts = [f"a photo of a {name}" for name in DIGITS for _ in range(12)]
    return generator.generate(prompts, range(len(prompts)))


def test_it_is_a_stock_stable_diffusion_pipeline(generator):
    assert type(generator.pipeline).__name__ == "StableDiffusionPipeline"
    assert generator.pipeline.safety_checker is None
    assert generator.pipeline.unet.dtype == generator.pipeline.text_encoder.dtype == torch.float32
    expected = json.loads((FOLDER / "fedsim.json").read_text())
    assert {"steps": generator.steps, "guidance_scale": generator.guidance_scale} == expected


def test_pictures_show_what_the_prompt_names(pictures):
    assert pictures.shape == (120, 32, 32, 3)
    assert pictures.dtype == np.uint8
    clip = load_clip("tiny-clip")
    texts = clip.class_embeddings(DIGITS, ["a photo of a {}"])
    found = (clip.encode_images(clip.prepare(pictures)) @ texts.T).argmax(1).view(10, 12)
    right = found.eq(torch.arange(10)[:, None]).float().mean(1)
    assert right.mean() > 0.6  # chance is 0.1
    assert right.min() > 0.2


def test_pictures_of_one_class_differ(pictures):
    for pixels in pictures.reshape(10, 12, -1).astype(float):
        assert np.std(pixels, axis=0).mean() > 10  # grey levels of 255


def test_a_picture_depends_on_its_prompt_and_seed_not_on_its_neighbours(generator):
    prompts, seeds = ["a photo of a two", "a photo of a five", "a photo of a two"], [7, 7, 8]
    together = generator.generate(prompts, seeds)
    assert np.array_equal(generator.generate(prompts, seeds), together)
    apart = generator.generate(prompts, seeds, batch_size=1)
    assert np.abs(apart.astype(int) - together).max() <= 2
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(together[0], together[2])


def test_steps_and_guidance_can_be_given(generator):
    prompts, seeds = ["a photo of a three"], [1]
    usual = generator.generate(prompts, seeds)
    assert not np.array_equal(generator.at(steps=3).generate(prompts, seeds), usual)
    assert not np.array_equal(generator.at(guidance_scale=1.0).generate(prompts, seeds), usual)


def test_generating_leaves_the_global_generator_alone(generator):
    state = torch.random.get_rng_state()
    generator.at(steps=2).generate(["a photo of a one"], [3])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_prompts_and_seeds_go_in_pairs(generator):
    with pytest.raises(ValueError, match="2 prompts, but 1 seeds"):
        generator.generate(["a", "b"], [1])


def test_any_text_has_tokens(generator):
    tokenizer = generator.pipeline.tokenizer
    assert tokenizer.tokenize("a photo of a seven") == [
        *("a</w>", "photo</w>", "of</w>", "a</w>", "seven</w>")
    ]
    assert tokenizer.unk_token not in tokenizer.tokenize("Zürich, 東京!")


def test_a_local_folder_loads_without_defaults(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "mine", ignore=shutil.ignore_patterns("fedsim.json"))
    mine = load_generator(str(tmp_path / "mine"))
    assert (mine.steps, mine.guidance_scale) == (None, None)
    (tmp_path / "mine" / "fedsim.json").write_text('{"step": 4}')
    with pytest.raises(ModelError, match="unknown settings \\['step'\\]"):
        load_generator(str(tmp_path / "mine"))


def test_wrong_names_and_folders_are_explained(tmp_path):
    with pytest.raises(ModelError, match="did you mean 'tiny-diffusion'"):
        load_generator("tiny-difusion")
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        load_generator(str(tmp_path))
    shutil.copy(FOLDER / "model_index.json", tmp_path)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_generator(str(tmp_path))


def test_an_unreachable_hub_is_explained(monkeypatch):
    import diffusers

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(diffusers.AutoPipelineForText2Image, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="no route to host[^$]*give that folder") as caught:
        load_generator("stabilityai/sd-turbo")
    assert isinstance(caught.value.__cause__, OSError)
