"""Archives: which keys mean what, and every way in which they are broken."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedsim.data import load_dataset
from fedsim.errors import ConfigError, DataError, FedsimError

Y = np.arange(40) % 4
X = np.random.default_rng(0).integers(0, 256, (40, 5, 6), dtype=np.uint8)
F = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float16)


def sizes(path: str, **options) -> list[int]:
    data = load_dataset(path, **options)
    return [len(data.train), len(data.val), len(data.test)]


class TestKeys:
    @pytest.mark.parametrize("rows", ["x", "images", "image", "data"])
    @pytest.mark.parametrize("labels", ["y", "labels", "label", "targets"])
    def test_usual_names(self, save, rows: str, labels: str):
        assert sum(sizes(save(**{rows: X, labels: Y}))) == 40

    def test_given_names(self, save):
        path = save(pixels=X, digit=Y, writer=Y + 5, style=Y % 2, y=Y * 0)
        data = load_dataset(
            path,
            image_column="pixels",
            label_column="digit",
            client_column="writer",
            domain_column="style",
        )
        assert np.array_equal(data.train.clients, data.train.labels + 5)
        assert np.array_equal(data.train.domains, data.train.labels % 2)
        assert data.domain_names == ("0", "1")

    @pytest.mark.parametrize("pattern", ["{0}_{1}", "{1}_{0}"])
    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_one_key_per_split(self, save, pattern: str, val: str):
        cut = {"train": slice(0, 20), val: slice(20, 28), "test": slice(28, 40)}
        arrays = {pattern.format("x", s): X[rows] for s, rows in cut.items()}
        arrays |= {pattern.format("y", s): Y[rows] for s, rows in cut.items()}
        arrays[pattern.format("client", "train")] = Y[:20] + 1
        data = load_dataset(save(**arrays))
        assert [len(data.train), len(data.val), len(data.test)] == [20, 8, 12]
        assert np.array_equal(data.train.clients, Y[:20] + 1)
        assert data.test.clients is None
        assert data.notes == ()

    def test_flat_keys_beside_a_test_split_are_train(self, save):
        data = load_dataset(save(x=X[:30], y=Y[:30], x_test=X[30:], y_test=Y[30:]), val_fraction=0)
        assert [len(data.train), len(data.test)] == [30, 10]

    @pytest.mark.parametrize("flag", ["is_test", "is_local_test"])
    def test_flags(self, save, flag: str):
        path = save(x=X, y=Y, is_val=np.arange(40) % 5 == 0, **{flag: np.arange(40) >= 30})
        assert sizes(path) == [24, 6, 10]

    @pytest.mark.parametrize(
        "split",
        [
            np.repeat(["train", "val", "test"], [24, 8, 8]),
            np.repeat([b"training", b"validation", b"test"], [24, 8, 8]),
            np.repeat([0, 1, 2], [24, 8, 8]),
        ],
    )
    def test_split_column(self, save, split: np.ndarray):
        assert sizes(save(x=X, y=Y, split=split)) == [24, 8, 8]

    def test_labels_may_be_names(self, save):
        names = np.array(["dog", "cat", "emu", "bee"])[Y]
        data = load_dataset(save(x=X, y=names))
        assert data.classnames == ("bee", "cat", "dog", "emu")
        listed = load_dataset(save(x=X, y=names), classnames=["dog", "cat", "emu", "bee"])
        assert listed.classnames == ("dog", "cat", "emu", "bee")

    def test_clients_and_domains_may_be_names(self, save):
        who = np.array(["ann", "bob"])[Y % 2]
        data = load_dataset(save(x=X, y=Y, client=who, domain=who))
        assert np.array_equal(data.train.clients, data.train.labels % 2)
        assert data.domain_names == ("ann", "bob")


class TestImages:
    @pytest.mark.parametrize(
        ("shape", "found"),
        [
            ((40, 5, 6), (5, 6)),
            ((40, 5, 6, 1), (5, 6)),
            ((40, 1, 5, 6), (5, 6)),
            ((40, 5, 6, 3), (5, 6, 3)),
            ((40, 3, 5, 6), (5, 6, 3)),
            ((40, 3, 3, 3), (3, 3, 3)),
        ],
    )
    def test_channels_come_last(self, save, shape: tuple, found: tuple):
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        data = load_dataset(save(x=images, y=Y))
        assert data.train.load_images().shape[1:] == found
        assert data.train.load_images(np.array([2, 0])).shape == (2, *found)

    def test_channels_first_are_moved_not_reshaped(self, save):
        images = np.zeros((40, 3, 5, 6), dtype=np.uint8)
        images[:, 1] = 200
        green = load_dataset(save(x=images, y=Y)).train.load_images()
        assert (green[..., 1] == 200).all()
        assert (green[..., [0, 2]] == 0).all()

    @pytest.mark.parametrize(
        "images", [X / 255.0, (X / 255).astype(np.float32), X.astype(float), X.astype(np.int64)]
    )
    def test_every_scale_gives_the_same_bytes(self, save, images: np.ndarray):
        want = load_dataset(save(x=X, y=Y, is_test=np.arange(40) > 30), val_fraction=0)
        got = load_dataset(save(x=images, y=Y, is_test=np.arange(40) > 30), val_fraction=0)
        assert got.fingerprint == want.fingerprint

    def test_the_scale_is_that_of_all_splits(self, save):
        dark = np.minimum(X[:8], 1).astype(float)
        data = load_dataset(
            save(x_train=X.astype(float), y_train=Y, x_test=dark, y_test=Y[:8]), val_fraction=0
        )
        assert data.test.load_images().max() == 1

    def test_booleans_are_black_and_white(self, save):
        data = load_dataset(save(x=X > 99, y=Y))
        assert set(np.unique(data.train.load_images())) == {0, 255}


class TestFeatures:
    def test_two_dimensional_floats_are_features(self, save):
        data = load_dataset(save(x=F, y=Y))
        assert data.train.features.dtype == np.float32
        assert data.train.features.shape[1] == 7

    def bundle(self, save, **changes) -> str:
        arrays = {
            "keys_1": F[:4], "keylab_1": Y[:4], "keys_4": F[:16], "keylab_4": Y[:16],
            "val_f": F[16:28], "val_l": Y[16:28], "test_f": F[28:], "test_l": Y[28:],
            "classnames": np.array(["a", "b", "c", "d"]),
            "text_f": F[[3, 1]], "text_class": np.array([3, 1]),
        }  # fmt: skip
        return save(**{k: v for k, v in (arrays | changes).items() if v is not None})

    def test_few_shot_bundle(self, save):
        assert sizes(self.bundle(save)) == [16, 12, 12]
        assert sizes(self.bundle(save), shots=1) == [4, 12, 12]
        assert "keys_4" in load_dataset(self.bundle(save)).notes[0]

    def test_text_features_of_some_classes(self, save):
        path = self.bundle(save)
        ignored = load_dataset(path, shots=4)
        assert ignored.text_features is None
        assert "2 of 4 classes have one" in ignored.notes[0]
        data = load_dataset(path, shots=4, only_text_classes=True)
        assert data.classnames == ("b", "d")
        assert np.array_equal(data.text_features, F[[1, 3]].astype(np.float32))
        assert set(data.train.labels) == {0, 1}
        assert np.array_equal(data.test.features[data.test.labels == 1], F[28:][Y[28:] == 3])

    def test_text_features_of_all_classes_need_no_ids(self, save):
        data = load_dataset(self.bundle(save, text_f=F[:4], text_class=None))
        assert np.array_equal(data.text_features, F[:4].astype(np.float32))

    def test_shots_that_are_not_there(self, save):
        with pytest.raises(DataError, match="no keys_3: choose shots from 1, 4"):
            load_dataset(self.bundle(save), shots=3)

    def test_train_split_can_be_another(self, save):
        path = save(val_f=F[:28], val_l=Y[:28], test_f=F[28:], test_l=Y[28:])
        with pytest.raises(
            DataError, match="no train split, only val, test: set train_split to val"
        ):
            load_dataset(path)
        assert sizes(path, train_split="val") == [24, 4, 12]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"text_class": np.array([1, 1])}, "class ids must be distinct"),
            ({"text_class": np.array([1, 9])}, "from 0 to 3"),
            ({"text_f": F[:2, :5]}, "width 5, image features 7"),
            ({"text_f": F[:3]}, r"\(3, 7\) for \(2,\) classes"),
            ({"text_f": F[:2] * np.nan}, "2 of 2 rows hold NaN"),
            ({"test_f": F[28:, :6]}, "feature widths differ: val 7, test 6, train 7"),
            ({"keylab_4": None}, "train split has 'keys_4' but no labels"),
            ({"test_l": None}, "test split has 'test_f' but no labels"),
            ({"classnames": np.array(["a", "b", "b", "d"])}, "class name 'b' occurs 2 times"),
            ({"classnames": np.array(["a", "b", " ", "d"])}, "the name of class 2 is empty"),
            ({"classnames": np.arange(4)}, "classnames must be strings"),
            ({"classnames": np.array(["a", "b"])}, "a label is 3, but there are 2 class names"),
        ],
    )
    def test_broken_bundles(self, save, changes: dict, message: str):
        with pytest.raises(DataError, match=message):
            load_dataset(self.bundle(save, **changes))


def spoil(images: np.ndarray, row: int, value: float) -> np.ndarray:
    images = images.astype(np.float64) / 255
    images[row, 0] = value
    return images


BAD = [
    ({"x": X}, "no labels under a usual key .* set label_column to one of x"),
    ({"y": Y}, "no images or features under a usual key .* set image_column to one of y"),
    ({"x": X, "y": Y[:39]}, "40 train rows but 39 labels"),
    ({"x": X, "y": Y[:39], "is_test": Y[:39] > 2}, "40 train rows but 39 labels"),
    ({"x": X, "y": Y / 2}, "labels are float64: save class numbers as integers"),
    ({"x": X, "y": np.eye(4)[Y]}, "are they one-hot"),
    ({"x": X, "y": Y - 1}, "labels start at -1"),
    ({"x": X, "y": Y * 0}, "one class only"),
    ({"x": X, "y": Y * 2}, r"3 of 7 classes have no training sample, e.g. 1 \(1\), 3"),
    ({"x": X, "y": Y + 10**9}, "a label is 1000000003"),
    ({"x": X, "y": np.int64(3)}, "'y' is not an array with one row per sample"),
    ({"x": X[:0], "y": Y[:0]}, "the train split is empty"),
    ({"x": X[:, :0], "y": Y}, "images have no pixels"),
    ({"x": X[:, 0], "y": Y}, r"shape \(40, 6\): images must be \(N, H, W\)"),
    ({"x": np.zeros((40, 5, 6, 4)), "y": Y}, r"shape \(40, 5, 6, 4\)"),
    ({"x": np.zeros((40, 2, 5, 6, 3)), "y": Y}, r"shape \(40, 2, 5, 6, 3\)"),
    ({"x": spoil(X, 7, np.nan), "y": Y}, "1 of 40 rows hold NaN or infinite values, .* row 7"),
    ({"x": spoil(X, 9, np.inf), "y": Y}, "1 of 40 rows .* row 9"),
    ({"x": X / 127.5 - 1, "y": Y}, "values from -1 to 1: .* before any normalisation"),
    ({"x": X * 3.0, "y": Y}, "before any normalisation"),
    ({"x": X.astype(np.int32) + 9, "y": Y}, "before any normalisation"),
    ({"x": X.astype(complex), "y": Y}, "dtype complex128"),
    ({"x": np.where(F > 9, F, np.nan), "y": Y}, "40 of 40 rows hold NaN"),
    ({"features": np.zeros((40, 3, 2)), "y": Y}, "features are float64 \\(40, 3, 2\\), not floats"),
    ({"x": X, "y": Y, "is_test": Y}, "'is_test' must hold only 0 and 1"),
    ({"x": X, "y": Y, "is_test": Y[:9] > 2}, r"'is_test' has shape \(9,\) for 40 labels"),
    ({"x": X, "y": Y, "split": np.array(["left"] * 40)}, "'split' holds left: use train"),
    ({"x": X, "y": Y, "is_test": Y > 5, "split": ["test"] * 40}, "no train split, only test"),
    ({"x": X, "y": Y, "client": Y / 2}, "clients are float64: give integers or names"),
    ({"x": X, "y": Y, "client": Y[:9]}, r"clients have shape \(9,\) for 40 train labels"),
    ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "images of the splits differ"),
    ({"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]}, "the test split is empty"),
    ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, r"no training sample, .* 4 \(4\)"),
    ({"x": X, "y": np.array([{}] * 40)}, "'y' is a pickled object array, which is never loaded"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), BAD)
def test_broken_arrays(save, arrays: dict, message: str):
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(save(**arrays))
    assert "\n" not in str(caught.value)
    assert "data.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "lable"}, "has no 'lable': did you mean 'label'?"),
        ({"image_column": "img"}, "has no 'img': known: label, x"),
        ({"client_column": "who"}, "has no 'who'"),
        ({"classnames": ["only", "two"]}, "a label is 3, but there are 2 class names"),
        ({"image_size": 32}, "image_size applies to image folders"),
        ({"domains": True}, "domains applies to image folders"),
    ],
)
def test_options_that_do_not_fit(save, options: dict, message: str):
    with pytest.raises(FedsimError) as caught:
        load_dataset(save(x=X, label=Y), **options)
    assert message in str(caught.value)


def test_a_given_column_must_be_in_a_split_archive_too(save):
    with pytest.raises(DataError, match="has no 'writer'"):
        load_dataset(save(x_train=X, y_train=Y, x_test=X, y_test=Y), client_column="writer")


def test_a_label_that_is_no_class_name(save):
    with pytest.raises(
        DataError, match="label 'cta' is not among the class names: did you mean 'cat'"
    ):
        load_dataset(save(x=X[:3], y=np.array(["dog", "cta", "cat"])), classnames=["dog", "cat"])


class TestDamage:
    @pytest.mark.parametrize("keep", [0, 10, 1000, -200])
    def test_a_truncated_file(self, save, keep: int):
        path = Path(save(x=X, y=Y))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=r"data.npz: not a readable .npz archive"):
            load_dataset(str(path))

    def test_flipped_bytes(self, save):
        path = Path(save(x=X, y=Y))
        content = bytearray(path.read_bytes())
        content[400:420] = bytes(20)
        path.write_bytes(content)
        with pytest.raises(DataError, match="'x' is damaged .*: copy it again"):
            load_dataset(str(path))

    def test_an_unknown_zip_version(self, save):
        path = Path(save(x=X, y=Y))
        content = bytearray(path.read_bytes())
        content[content.rfind(b"PK\x01\x02") + 6] = 99
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable .npz archive"):
            load_dataset(str(path))

    def test_a_header_that_lies(self, tmp_path: Path):
        with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
            header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000000,), }"
            header = header.ljust(117) + b"\n"
            magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
            archive.writestr("x.npy", magic + header + b"123")
            archive.writestr("y.npy", magic + b"nonsense".ljust(117) + b"\n")
        for columns in ({}, {"image_column": "y", "label_column": "y"}):
            with pytest.raises(DataError, match="is damaged"):
                load_dataset(str(tmp_path / "data.npz"), **columns)

    def test_a_member_that_is_no_array(self, tmp_path: Path):
        with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
            archive.writestr("x", b"hello")
            archive.writestr("y", b"hello")
        with pytest.raises(DataError, match="is not an array"):
            load_dataset(str(tmp_path / "data.npz"))

    def test_an_empty_archive(self, save):
        with pytest.raises(DataError, match=r"data.npz is empty"):
            load_dataset(save())

    def test_text_that_is_called_npz(self, tmp_path: Path):
        (tmp_path / "data.npz").write_text("hello")
        with pytest.raises(DataError, match="it is no zip file"):
            load_dataset(str(tmp_path / "data.npz"))

    def test_a_bare_array(self, tmp_path: Path):
        with (tmp_path / "data.npz").open("wb") as handle:
            np.save(handle, X)
        with pytest.raises(DataError, match="one bare array"):
            load_dataset(str(tmp_path / "data.npz"))


def test_a_test_domain_is_held_out(save):
    path = save(x=X, y=Y, domain=np.array(["photo", "sketch"])[np.arange(40) // 4 % 2])
    data = load_dataset(path, test_domain="sketch", val_fraction=0.25)
    assert data.domain_names == ("photo", "sketch")
    assert set(data.train.domains) == set(data.val.domains) == {0}
    assert set(data.test.domains) == {1}
    assert len(data.test) == 20
    assert data.notes[0] == "test: the 20 train samples of domain sketch"
    with pytest.raises(ConfigError, match="did you mean 'sketch'"):
        load_dataset(path, test_domain="sketches")


def test_a_test_domain_of_an_official_test_split(save):
    domain, split = np.arange(40) // 4 % 2, np.array(["train", "val", "test"])[np.arange(40) % 3]
    path = save(x=X, y=Y, domain=np.array(["photo", "sketch"])[domain], split=split)
    whole, held = load_dataset(path), load_dataset(path, test_domain="sketch")
    assert set(held.train.domains) == set(held.val.domains) == {0}
    assert set(held.test.domains) == {1}
    # Nothing moves between splits: the test images are those of the official split.
    expected = whole.test.images[whole.test.domains == 1]
    assert np.array_equal(held.test.images, expected)
    assert held.notes[0] == f"test: the {len(expected)} test samples of domain sketch"
    parts = {f"{key}_{s}": v[:20] for key, v in (("x", X), ("y", Y)) for s in ("train", "test")}
    with pytest.raises(ConfigError, match="the test split does not say"):
        load_dataset(save(**parts, domain_train=domain[:20]), test_domain="1")
