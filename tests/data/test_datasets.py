"""Digits, options that hold for every source, and what a data set promises."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsim.data import Dataset, load_dataset
from fedsim.data.containers import DEFAULT_TEMPLATES
from fedsim.errors import ConfigError, DataError

LABELS = np.arange(200) % 4
IMAGES = (np.arange(200 * 9) % 256).astype(np.uint8).reshape(200, 3, 3)


def rows(data: Dataset) -> list[bytes]:
    return [image.tobytes() for s in (data.train, data.val, data.test) for image in s.load_images()]


class TestDigits:
    def test_the_split_is_the_same_everywhere_and_always(self):
        data = load_dataset("digits", seed=0)
        assert data.fingerprint == "402adf574f177693628c5231f15c086f"
        assert load_dataset("digits", seed=9, val_fraction=0.5).fingerprint == data.fingerprint

    def test_repeated_splits_are_of_the_same_rows_and_shares(self):
        fixed = load_dataset("digits")
        one, same, other = (load_dataset("digits", resplit=True, seed=s) for s in (1, 1, 2))
        assert one.fingerprint == same.fingerprint != other.fingerprint != fixed.fingerprint
        assert sorted(rows(one)) == sorted(rows(other)) == sorted(rows(fixed))
        assert abs(len(one.test) - len(fixed.test)) <= 10
        assert sorted(map(bytes, one.test.load_images())) != sorted(
            map(bytes, other.test.load_images())
        )

    def test_only_digits_are_split_anew(self, tmp_path: Path):
        path = tmp_path / "x.npz"
        np.savez(path, x=IMAGES, y=np.arange(200) % 2)
        with pytest.raises(ConfigError, match="keeps its test split apart"):
            load_dataset(str(path), resplit=True)

    def test_values_and_shares(self):
        from sklearn.datasets import load_digits

        data = load_dataset("digits")
        assert len(data.train) + len(data.val) + len(data.test) == 1797
        images = np.concatenate([s.load_images() for s in (data.train, data.val, data.test)])
        assert images.dtype == np.uint8
        assert np.array_equal(np.unique(images), np.round(np.arange(17) * 255 / 16 + 1e-9))
        bunch = load_digits()
        ours = sorted(image.tobytes() for image in images)
        assert ours == sorted(
            np.round(i * 255 / 16 + 1e-9).astype("u1").tobytes() for i in bunch.images
        )
        for split, share in ((data.train, 0.6), (data.val, 0.2), (data.test, 0.2)):
            sizes = np.bincount(split.labels, minlength=10) / np.bincount(bunch.target)
            assert np.allclose(sizes, share, atol=0.005)
        assert data.classnames[0] == "zero"
        assert data.templates == DEFAULT_TEMPLATES

    def test_options_of_other_sources_are_refused(self):
        for option in ({"label_column": "y"}, {"domains": True}, {"image_size": 9}):
            with pytest.raises(ConfigError, match="appl"):
                load_dataset("digits", **option)


class TestCarving:
    def test_missing_splits_are_carved_by_class_whatever_the_seed(self, save):
        path = save(x=IMAGES, y=LABELS)
        data = load_dataset(path, seed=0)
        assert [len(s) for s in (data.train, data.val, data.test)] == [144, 16, 40]
        assert np.bincount(data.test.labels).tolist() == [10] * 4
        assert sorted(rows(data)) == sorted(image.tobytes() for image in IMAGES)
        other = load_dataset(path, seed=1)
        assert other.fingerprint == data.fingerprint
        assert any("carved" in note for note in data.notes)

    def test_val_fraction_zero_leaves_val_empty(self, save):
        data = load_dataset(save(x=IMAGES, y=LABELS), val_fraction=0)
        assert len(data.val) == 0
        assert data.val.load_images().shape == (0, 3, 3)

    def test_an_official_test_split_stays_as_it_is(self, save):
        data = load_dataset(save(x=IMAGES, y=LABELS, is_test=np.arange(200) >= 150))
        assert np.array_equal(data.test.images, IMAGES[150:])
        official = {image.tobytes() for image in IMAGES[150:]} - {
            image.tobytes() for image in IMAGES[:150]
        }
        assert not official & {image.tobytes() for image in data.train.load_images()}

    def test_the_source_decides_how_it_is_carved(self, save):
        first = load_dataset(save(x=IMAGES, y=LABELS))
        second = load_dataset(save(x=IMAGES[::-1], y=LABELS))
        assert not np.array_equal(first.train.images, second.train.images[::-1])


class TestDraws:
    def test_shots_come_from_train_alone_and_from_the_seed(self, save):
        path = save(x=IMAGES, y=LABELS)
        whole = load_dataset(path)
        one, two, again = (load_dataset(path, shots=5, seed=seed) for seed in (0, 1, 0))
        assert np.bincount(one.train.labels).tolist() == [5] * 4
        assert one.test.fingerprint == whole.test.fingerprint
        assert one.val.fingerprint == whole.val.fingerprint
        assert one.fingerprint == again.fingerprint != two.fingerprint
        known = {image.tobytes() for image in whole.train.load_images()}
        assert {image.tobytes() for image in one.train.load_images()} <= known

    def test_too_few_for_the_shots_is_told(self, save):
        labels = np.repeat([0, 1], [190, 10])
        data = load_dataset(save(x=IMAGES, y=labels), shots=20, classnames=["many", "few"])
        assert np.bincount(data.train.labels).tolist() == [20, 7]
        assert "fewer than 20 training samples: few" in data.notes

    def test_max_train_samples_keeps_class_shares(self, save):
        labels = np.repeat([0, 1, 2], [140, 50, 10])
        data = load_dataset(save(x=IMAGES, y=labels), max_train_samples=20)
        assert np.bincount(data.train.labels).tolist() == [14, 5, 1]

    def test_max_test_samples_are_the_same_for_every_seed(self, save):
        labels = np.tile([0, 0, 0, 1, 1, 1, 1, 2, 2, 2], 20)
        path = save(x=IMAGES, y=labels, x_test=IMAGES, y_test=labels)
        first, again = (load_dataset(path, max_test_samples=20, seed=s).test for s in (0, 1))
        assert np.bincount(first.labels).tolist() == [6, 8, 6]
        assert first.fingerprint == again.fingerprint

    def test_max_train_samples_below_the_number_of_classes(self, save):
        with pytest.raises(ConfigError, match="fewer than the 4 classes"):
            load_dataset(save(x=IMAGES, y=LABELS), max_train_samples=3)


def test_a_data_set_survives_pickling(save):
    data = load_dataset(save(x=IMAGES, y=LABELS))
    copy = pickle.loads(pickle.dumps(data))
    assert copy.test.fingerprint == data.test.fingerprint


def test_any_change_of_content_changes_the_fingerprint(save):
    prints = set()
    changed = IMAGES.copy()
    changed[7, 1, 1] += 1
    for arrays in (
        {"x": IMAGES, "y": LABELS},
        {"x": changed, "y": LABELS},
        {"x": IMAGES, "y": LABELS[::-1]},
        {"x": IMAGES, "y": LABELS, "client": LABELS},
        {"x": IMAGES, "y": LABELS, "domain": LABELS},
        {"x": IMAGES, "y": LABELS, "classnames": list("abcd")},
    ):
        prints.add(load_dataset(save(**arrays)).fingerprint)
    assert len(prints) == 6


def test_names_and_templates_can_be_given(save):
    data = load_dataset(
        save(x=IMAGES, y=LABELS), classnames=["a", "b", "c", "d"], templates=["a sketch of a {}."]
    )
    assert data.classnames == ("a", "b", "c", "d")
    assert data.templates == ("a sketch of a {}.",)


def test_features_have_no_images(save):
    data = load_dataset(save(x=np.random.default_rng(0).normal(size=(200, 7)), y=LABELS))
    assert data.train.images is None
    with pytest.raises(DataError, match="precomputed features, not images"):
        data.train.load_images()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0"),
        ({"test_fraction": float("nan")}, "test_fraction is nan"),
        ({"shots": 0}, "shots is 0: it must be above 0"),
        ({"max_train_samples": 0}, "max_train_samples is 0"),
        ({"templates": ["a photo"]}, "templates: prompt 'a photo' needs exactly one {}"),
        ({"shot": 4}, "unknown setting 'shot'; did you mean 'shots'?"),
        ({"train_split": "test"}, "train_split is test: the test split is never trained on"),
        ({"test_domain": "photo"}, "test_domain is set, but the data has no domains"),
        ({"only_text_classes": True}, "has no text features"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        load_dataset("digits", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "nor a built-in: did you mean 'digits'?"),
        ("cinema", "use digits, a path, or hf:NAME"),
        ("{tmp}/missing/data.npz", "there is no folder"),
        ("{tmp}/dgits.npz", "did you mean 'digits.npz'?"),
        ("{tmp}/notes.txt", "not a .npz file or a folder of images"),
    ],
)
def test_what_is_not_there(tmp_path, name: str, message: str):
    (tmp_path / "digits.npz").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as caught:
        load_dataset(name.format(tmp=tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loading_and_splitting_need_no_torch():
    script = (
        "import sys, numpy\n"
        "from fedsim.data import load_dataset, make_partition\n"
        "early = {'sklearn', 'PIL', 'datasets', 'scipy'} & set(sys.modules)\n"
        "data = load_dataset('digits')\n"
        "make_partition(data.train.labels, scheme='iid', num_clients=3, rng=0)\n"
        "assert not early, early\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
