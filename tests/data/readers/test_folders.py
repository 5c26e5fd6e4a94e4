from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim.data import ImagePaths, load_dataset
from fedsim.data.images import pixels
from fedsim.errors import ConfigError, DataError


class TestLayouts:
    def test_classes(self, folder):
        root = folder({"sea_horse": 10, "ant": 20})
        (root / ".hidden").mkdir()
        (root / "ant" / "notes.txt").touch()
        data = load_dataset(str(root))
        assert data.classnames == ("ant", "sea horse")
        assert isinstance(data.train.images, ImagePaths)
        assert [len(data.train), len(data.val), len(data.test)] == [21, 3, 6]

    def test_splits(self, folder):
        root = folder({f"{s}/{c}": n for s, n in (("train", 5), ("test", 2)) for c in "ab"})
        data = load_dataset(str(root), val_fraction=0)
        assert [len(data.train), len(data.test)] == [10, 4]
        assert all(name.startswith("test/") for name in data.test.images.files)

    def test_a_class_may_be_called_train(self, folder):
        data = load_dataset(str(folder({"car": 9, "train": 9})))
        assert data.classnames == ("car", "train")

    def test_domains(self, folder):
        root = folder({f"{d}/{c}": 10 for d in ("photo", "sketch") for c in "ab"})
        data = load_dataset("mine", path=root, domains=True)
        assert data.name == "mine"
        assert data.domain_names == ("photo", "sketch")
        for name, domain in zip(data.test.images.files, data.test.domains, strict=True):
            assert name.startswith(data.domain_names[domain])
        groups = data.test.domains * 2 + data.test.labels
        assert np.bincount(groups).tolist() == [2] * 4  # by domain and class
        held = load_dataset("mine", path=root, domains=True, test_domain="photo")
        assert all(name.startswith("photo") for name in held.test.images.files)
        assert all(name.startswith("sketch") for name in held.train.images.files)


class TestLoading:
    def test_images_are_decoded_on_demand_and_in_order(self, folder):
        data = load_dataset(str(folder({"a": 8, "b": 8})), val_fraction=0)
        whole = data.train.load_images()
        assert whole.shape == (len(data.train), 6, 6, 3)
        some = data.train.load_images(np.array([3, 0]))
        assert np.array_equal(some, whole[[3, 0]])
        assert data.train.load_images(np.zeros(0, int)).shape[0] == 0

    def test_image_size_resizes_and_crops_the_middle(self, tmp_path: Path, folder):
        root = folder({"a": 3, "b": 3})
        wide = np.zeros((10, 30, 3), dtype=np.uint8)
        wide[:, 10:20] = 255
        Image.fromarray(wide).save(root / "a" / "wide.png")
        with pytest.raises(
            DataError, match=r"wide.png is 30x10 pixels, others are 6x6: set image_"
        ):
            load_dataset(str(root))
        data = load_dataset(str(root), image_size=10, val_fraction=0)
        images = np.concatenate([data.train.load_images(), data.test.load_images()])
        assert images.shape == (8 - 1, 10, 10, 3)
        assert (images == 255).all(axis=(1, 2, 3)).any()

    def test_resizing_agrees_with_clips_preprocessing(self):
        transforms = pytest.importorskip("torchvision.transforms.v2")
        source = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
        image = Image.fromarray(source)
        bicubic = transforms.InterpolationMode.BICUBIC
        theirs = transforms.Compose(
            [transforms.Resize(24, interpolation=bicubic), transforms.CenterCrop(24)]
        )(image)
        assert np.array_equal(pixels(image, "x", 24), np.asarray(theirs))

    @pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
    def test_every_mode_becomes_rgb(self, mode: str):
        image = Image.new(mode, (4, 5))
        assert pixels(image, "x", None).shape == (5, 4, 3)

    def test_transparent_palettes_do_not_warn(self, tmp_path: Path):
        image = Image.new("P", (4, 4))
        image.save(tmp_path / "p.png", transparency=bytes([0, 1]))
        assert pixels((tmp_path / "p.png").read_bytes(), "p.png", None).shape == (4, 4, 3)

    def test_sixteen_bits_are_refused(self, tmp_path: Path):
        Image.fromarray(np.full((4, 4), 999, dtype=np.uint16)).save(tmp_path / "deep.png")
        with pytest.raises(DataError, match=r"deep.png: I;16 pixels are not supported"):
            pixels((tmp_path / "deep.png").read_bytes(), "deep.png", None)

    def test_the_fingerprint_is_of_the_content_not_the_place(self, folder, tmp_path: Path):
        root = folder({"a": 4, "b": 4})
        first = load_dataset(str(root))
        moved = root.rename(tmp_path / "elsewhere")
        assert load_dataset(str(moved)).fingerprint == first.fingerprint
        assert load_dataset(str(moved), image_size=3).fingerprint != first.fingerprint
        Image.new("RGB", (6, 6), (9, 9, 9)).save(moved / "a" / "000.png")
        assert load_dataset(str(moved)).fingerprint != first.fingerprint

    def test_large_folders_are_hashed_by_the_ends_of_files(self, folder, monkeypatch):
        monkeypatch.setattr("fedsim.data.images._WHOLE_HASH_BYTES", 10)
        root = folder({"a": 4, "b": 4})
        first = load_dataset(str(root))
        assert load_dataset(str(root)).fingerprint == first.fingerprint
        Image.new("RGB", (6, 6), (9, 9, 9)).save(root / "a" / "000.png")
        assert load_dataset(str(root)).fingerprint != first.fingerprint


class TestBroken:
    @pytest.mark.parametrize(
        ("counts", "options", "message"),
        [
            ({}, {}, "no images: expected sub-folders {class}"),
            ({}, {"domains": True}, "no images: expected sub-folders {domain}/{class}"),
            ({"a": 3, "b": 0}, {}, "this class folder holds no images"),
            ({"d/a": 3, "d/b": 3}, {}, "if the layout is {domain}/{class}, set domains: true"),
            ({"x/d/a": 3}, {"domains": True}, "the layout is deeper than {domain}/{class}"),
            ({"a": 3}, {}, "one class only"),
            ({"train/a": 3, "train/b": 3, "test/c": 1}, {}, "no training sample, e.g. 2 (c)"),
        ],
    )
    def test_layouts(self, folder, tmp_path: Path, counts: dict, options: dict, message: str):
        root = folder(counts) if counts else tmp_path
        with pytest.raises(DataError) as caught:
            load_dataset(str(root), **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"hello, this is no image"])
    def test_a_file_that_is_no_image(self, folder, content: bytes):
        root = folder({"a": 3, "b": 3})
        (root / "a" / "001.png").write_bytes(content)
        with pytest.raises(DataError, match=r"001.png: not a readable image \(unknown format\)"):
            load_dataset(str(root))

    def test_a_broken_link(self, folder):
        root = folder({"a": 3, "b": 3})
        (root / "a" / "link.png").symlink_to(root / "nowhere.png")
        with pytest.raises(DataError, match=r"link.png: not a readable image"):
            load_dataset(str(root))

    def test_a_truncated_image_is_found_when_it_is_decoded(self, folder):
        root = folder({"a": 6, "b": 6}, size=(60, 60))
        for file in root.glob("a/*.png"):
            noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(file)
            file.write_bytes(file.read_bytes()[:5000])
        data = load_dataset(str(root))
        with pytest.raises(DataError, match=r"\.png: not a readable image"):
            data.train.load_images()

    def test_a_file_that_went_away(self, folder):
        root = folder({"a": 6, "b": 6})
        data = load_dataset(str(root))
        for file in root.glob("*/*.png"):
            file.unlink()
        with pytest.raises(DataError, match=r"\.png: cannot be read"):
            data.train.load_images()

    def test_a_missing_folder(self, folder):
        root = folder({"a": 3, "b": 3})
        with pytest.raises(DataError, match="did you mean 'images'"):
            load_dataset(str(root.parent / "image"))

    def test_columns_do_not_apply(self, folder):
        with pytest.raises(ConfigError, match="label_column does not apply to a folder"):
            load_dataset(str(folder({"a": 3, "b": 3})), label_column="y")

    def test_names_that_fall_together(self, folder):
        with pytest.raises(DataError, match="class name 'sea horse' occurs 2 times"):
            load_dataset(str(folder({"sea horse": 3, "sea_horse": 3})))
