"""Augmented views: crops within their law, flips when asked for, features averaged."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from fedsim.models.clip import load_clip
from fedsim.models.random_views import _crop, averaged_features, random_view
from fedsim.seeding import numpy_rng

sides = st.integers(1, 300)


@given(width=sides, height=sides, seed=st.integers(0, 2**32))
def test_crops_lie_inside(width: int, height: int, seed: int):
    left, top, right, bottom = _crop((width, height), numpy_rng(seed, "crop"))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(side=st.integers(60, 300), seed=st.integers(0, 2**32))
def test_crops_hold_half_to_all_of_the_area_of_a_square(side: int, seed: int):
    left, top, right, bottom = _crop((side, side), numpy_rng(seed, "crop"))
    wide, high = right - left, bottom - top
    assert 0.5 - 2 / side <= wide * high / side**2 <= 1
    assert 0.75 - 3 / side <= wide / high <= 4 / 3 + 4 / side


def test_an_image_too_thin_for_any_crop_gives_its_middle():
    assert _crop((100, 10), numpy_rng(0, "thin")) == (43, 0, 56, 10)
    assert _crop((10, 100), numpy_rng(0, "thin")) == (0, 43, 10, 56)


def gradient() -> Image.Image:
    return Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))).convert("RGB")


def test_a_view_follows_its_generator_and_is_flipped_half_of_the_time():
    rising = [_rises(random_view(gradient(), 16, numpy_rng(n, "v"), True)) for n in range(200)]
    assert 70 < sum(rising) < 130
    for n in range(20):
        plain, flipped = (random_view(gradient(), 16, numpy_rng(n, "v"), f) for f in (False, True))
        assert plain.size == (16, 16)
        assert _rises(plain)
        expected = np.asarray(plain) if rising[n] else np.asarray(plain)[:, ::-1]
        assert np.array_equal(np.asarray(flipped), expected)  # the same crop
    both = [np.asarray(random_view(gradient(), 16, numpy_rng(n, "v"))) for n in (0, 0, 1)]
    assert np.array_equal(both[0], both[1])
    assert not np.array_equal(both[0], both[2])


def _rises(view: Image.Image) -> bool:
    row = np.asarray(view)[8, :, 0].astype(int)
    return bool(row[-1] > row[0])


def test_features_are_averaged_before_they_are_normalised():
    clip = load_clip("tiny-clip")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(a) for a in rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)]
    found = averaged_features(clip, [images[:3], images[3:]], batch_size=4)
    with torch.no_grad():
        raw = clip.visual(clip.normalise(clip.prepare(images))).float().view(2, 3, -1)
    torch.testing.assert_close(found, functional.normalize(raw.mean(1), dim=-1))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    once = averaged_features(clip, [[image] for image in images])
    torch.testing.assert_close(once, clip.encode_images(clip.prepare(images)))
    assert raw.norm(dim=-1).std() > 1e-3  # else the order of the two would not matter
    assert found.tolist() != pytest.approx(0.0)
