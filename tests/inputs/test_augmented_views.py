"""Views of training images: what is encoded, what clients draw, and where views are refused."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedsim
from fedsim.config import Experiment
from fedsim.data.images import ImagePaths
from fedsim.driver.traffic import traffic
from fedsim.errors import ConfigError
from fedsim.inputs import encode as encode_module
from fedsim.inputs.encode import Shard, extract_here
from fedsim.inputs.preflight import preflight
from fedsim.inputs.prepare import InputSteps, prepare
from fedsim.inputs.run_inputs import RunInputs
from fedsim.methods import method_class
from fedsim.models.random_views import RandomViews
from fedsim.results.tables.equality import equal_results
from fedsim.storage.array_cache import InputStep, is_stored
from tests.helpers import experiment, run, write_features

CPU = torch.device("cpu")
VIEWS = {"train__augment_views": 3}


def config(method: str = "fedavg_head", **settings: Any) -> Experiment:
    given = {"models__clip": "tiny-clip", "data__max_train_samples": 60, "seed": 1}
    return experiment("digits", method, **(given | settings))


def prepared(asked: Experiment, **how: Any) -> RunInputs:
    return prepare(asked, method_class(asked.use), CPU, synthetic=False, **how)


def steps(asked: Experiment) -> tuple[InputStep, ...]:
    return InputSteps(asked, method_class(asked.use)).real


# --- what is encoded -----------------------------------------------------------------------------


def test_the_first_view_is_the_image_and_the_others_are_crops_of_it():
    found = prepared(config(**VIEWS)).arrays
    plain = np.asarray(found["train_inputs"])
    views = np.asarray(found["train_views"]).reshape(60, 3, -1)
    assert np.array_equal(views[:, 0], plain)
    np.testing.assert_allclose(np.linalg.norm(views, axis=-1), 1, rtol=1e-5)
    similarity = np.einsum("nvd,md->nvm", views[:, 1:], plain)
    own = np.einsum("nvn->nv", similarity)
    assert (own < 1 - 1e-4).mean() > 0.9  # of 8 pixels, a crop may take all
    assert own.mean() > similarity.mean() + 0.3
    assert (views[:, 1] != views[:, 2]).any(1).all()


def test_all_but_the_views_is_what_it_is_without_them():
    asked, plain = config(**VIEWS), config()
    with_views, without = prepared(asked), prepared(plain)
    assert [step.key for step in steps(plain)] == [steps(asked)[0].key]
    assert with_views.address == without.address
    assert set(with_views.arrays) == set(without.arrays) | {"train_views"}
    for name, array in without.arrays.items():
        assert np.array_equal(array, with_views.arrays[name])
    assert "train_views" not in prepared(config("zero_shot", **VIEWS)).arrays  # nobody trains


def test_fewer_views_are_the_beginning_of_more_and_no_seed_moves_a_crop():
    few, many = (
        np.asarray(
            prepared(config(train__augment_views=v, train__seed=v)).arrays["train_views"]
        ).reshape(60, v, -1)
        for v in (2, 4)
    )
    assert np.array_equal(few, many[:, :2])
    flipped = prepared(config(train__augment_views=2, train__augment_flip=True)).arrays
    changed = (np.asarray(flipped["train_views"]).reshape(60, 2, -1) != few).any(2)
    assert not changed[:, 0].any()
    assert 15 < changed[:, 1].sum() < 45


def test_views_of_files_and_of_arrays_are_the_same(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    names = tuple(f"{n}.png" for n in range(5))
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    files = RandomViews(ImagePaths(tmp_path, names, None), 1, 16)
    whole = pixels(RandomViews(images, 1, 16))
    assert np.array_equal(pixels(files), whole)
    assert np.array_equal(pixels(files[1:4]), whole[1:4])
    assert np.array_equal(pixels(RandomViews(images, 1, 16)[1:][1:]), whole[2:])
    assert not np.array_equal(pixels(RandomViews(images, 2, 16)), whole)


def pixels(views: RandomViews) -> np.ndarray:
    return np.stack([np.asarray(view) for view in views.load(np.arange(len(views)))])


def test_a_kill_costs_the_shard_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = np.asarray(prepared(config(**VIEWS)).arrays["train_views"])
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encode_module, "SHARD", 40)
    prepared(config())
    sizes: list[int] = []

    def dying(clip: Any, pixels: bool, shards: Sequence[Shard]) -> Iterator[tuple[int, np.ndarray]]:
        for shard in shards:
            if len(sizes) == 3:
                raise KeyboardInterrupt
            sizes.append(len(shard.images))
            yield from extract_here(clip, pixels, [shard])

    with pytest.raises(KeyboardInterrupt):
        prepared(config(**VIEWS), extract=dying)
    assert sizes == [40, 20, 40]
    told: list[tuple[int, int]] = []
    found = prepared(config(**VIEWS), progress=lambda *seen: told.append(seen)).arrays
    assert told == [(100, 120), (120, 120)]
    np.testing.assert_allclose(found["train_views"], whole, atol=1e-6)
    assert not list((tmp_path / "cache").glob(".parts-*"))


# --- what clients train on -----------------------------------------------------------------------


def test_clients_train_on_three_rows_of_each_sample():
    noise = {"noise__clients": 0.5, "noise__labels": 0.5}
    data = prepared(config(**VIEWS, **noise))
    inputs, labels = data.local()
    assert (len(inputs), len(labels)) == (180, 180)
    assert np.array_equal(labels.reshape(60, 3)[:, 2], data.arrays["train_labels_observed"])
    plain = prepared(config()).local()
    assert plain[0].base is not None  # still a view of the mapped file
    assert (len(plain[0]), len(plain[1])) == (60, 60)


def accuracy(folder: Path) -> float:
    rows = fedsim.load(folder).rounds
    return float(rows["accuracy"].iloc[-1])


@pytest.mark.parametrize("method", ["fedavg_head", "cache_text", "local_only", "clip_adapter"])
def test_views_change_what_is_learnt_and_not_what_is_learnt_from(method: str, tmp_path: Path):
    plain, viewed = config(method), config(method, **VIEWS)
    first, second, without = (
        run(asked, tmp_path / name)
        for asked, name in ((viewed, "first"), (viewed, "second"), (plain, "plain"))
    )
    assert equal_results(first, second) == []
    assert equal_results(first, without, match="cell") != []
    found, other = fedsim.load(first).clients, fedsim.load(without).clients
    names = ["round", "client_id", "num_samples", "num_steps", "bytes_up", "train_flops"]
    assert found[names].equals(other[names])
    before = (found["round"] == 1) & found["loss_before"].notna()
    assert found.loc[before, "loss_before"].equals(other.loc[before, "loss_before"])  # view 0
    assert traffic(viewed) == traffic(plain)


@pytest.mark.parametrize("method", ["afl", "gda"])
def test_methods_that_see_each_sample_once_see_it_as_it_is(method: str, tmp_path: Path):
    plain, viewed = (
        run(asked, tmp_path / name)
        for asked, name in ((config(method), "plain"), (config(method, **VIEWS), "views"))
    )
    assert equal_results(plain, viewed, match="cell") == []


def test_flipping_no_views_changes_nothing(tmp_path: Path):
    plain, flipped = (
        run(asked, tmp_path / name)
        for asked, name in ((config(), "plain"), (config(train__augment_flip=True), "flip"))
    )
    assert equal_results(plain, flipped, match="cell") == []


# --- refusals ------------------------------------------------------------------------------------


def test_refused_before_anything_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    asked = [
        config("fedavg_finetune", **VIEWS),
        config("fedavg", models__clip=None, **VIEWS),
        experiment(write_features(tmp_path), "fedavg_head", **VIEWS),
        config("cache_text", noise__clients=0.5, noise__images="blur", **VIEWS),
    ]
    monkeypatch.setattr(encode_module, "encode", None)
    with pytest.raises(ConfigError) as caught:
        preflight(asked)
    expected = [
        "methods.fedavg_finetune: train.augment_views is for methods on features",
        "methods.fedavg: train.augment_views is for methods on features of a frozen encoder, and",
        "methods.fedavg_head: train.augment_views encodes views of images, but ",
        "methods.cache_text: train.augment_views crops images as they are, and noise.images",
    ]
    assert len(caught.value.problems) == 4
    for problem, begins in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(begins)


def test_preflight_encodes_views_before_the_first_run():
    asked = config(train__augment_views=5)
    preflight([config(), asked, config("zero_shot", train__augment_views=5)])
    assert [is_stored(step.key) for step in steps(asked)] == [True, True]
