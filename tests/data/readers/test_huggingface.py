import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fedsim.data import load_dataset
from fedsim.errors import ConfigError, DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("default")  # the package and its own requirements warn


def images(count: int, side: int = 4) -> list[np.ndarray]:
    return [np.full((side, side, 3), i, dtype=np.uint8) for i in range(count)]


def make(count: int, **columns: object) -> "datasets.Dataset":
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
            **{name: datasets.Value("string") for name in columns},
        }
    )
    labels = [i % 2 for i in range(count)]
    content = {"img": images(count), "fine_label": labels, **columns}
    return datasets.Dataset.from_dict(content, features=features)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    parts = {"train": make(20), "validation": make(6), "test": make(8)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "copy"))
    return tmp_path / "copy"


@pytest.mark.parametrize("as_path", [True, False])
def test_a_copy_on_disk(saved: Path, as_path: bool):
    name, options = ("hf:pets:small", {"path": saved}) if as_path else (f"hf:{saved}", {})
    data = load_dataset(name, **options)
    assert [len(data.train), len(data.val), len(data.test)] == [20, 6, 8]
    assert data.classnames == ("cat", "dog")
    assert data.train.load_images()[7].tolist() == images(8)[7].tolist()


def test_one_split_and_named_columns(tmp_path: Path):
    make(20, writer=["ann", "bob"] * 10, style=["oil"] * 10 + ["ink"] * 10).save_to_disk(
        str(tmp_path / "one")
    )
    data = load_dataset(
        "hf:one", path=tmp_path / "one", client_column="writer", domain_column="style"
    )
    assert len(data.train) + len(data.val) + len(data.test) == 20
    assert data.domain_names == ("ink", "oil")
    assert np.array_equal(data.train.clients, data.train.labels)


def test_a_wrong_column_is_named(saved: Path):
    with pytest.raises(DataError, match="has no 'fine_labels': did you mean 'fine_label'"):
        load_dataset("hf:pets", path=saved, label_column="fine_labels")


def test_no_usual_column(tmp_path: Path):
    table = datasets.Dataset.from_dict({"a": [1, 2], "b": [0, 1]})
    table.save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(DataError, match="set label_column to one of a, b"):
        load_dataset("hf:odd", path=tmp_path / "odd")


def test_mixed_sizes_need_image_size(tmp_path: Path):
    table = datasets.Dataset.from_dict(
        {"image": images(3) + images(3, side=6), "label": [0, 1, 0, 1, 0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    table.save_to_disk(str(tmp_path / "mixed"))
    with pytest.raises(DataError, match=r"row 3 has shape \(6, 6, 3\).*set image_size"):
        load_dataset("hf:mixed", path=tmp_path / "mixed")
    data = load_dataset("hf:mixed", path=tmp_path / "mixed", image_size=5)
    assert data.train.load_images().shape[1:] == (5, 5, 3)


def test_too_many_bytes_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedsim.data.readers.huggingface._MAX_BYTES", 100)
    with pytest.raises(DataError, match="20 images of 48 bytes exceed"):
        load_dataset("hf:pets", path=saved)


def test_offline_says_how_to_copy(monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nwith a long story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError) as caught:
        load_dataset("hf:cifar10:plain_text")
    message = str(caught.value)
    assert "cannot load hf:cifar10:plain_text (Couldn't reach the hub)" in message
    assert "load_dataset('cifar10', 'plain_text').save_to_disk('DIR')" in message
    assert "set path: DIR" in message
    assert "\n" not in message


def test_a_folder_that_is_no_data_set(tmp_path: Path):
    with pytest.raises(DataError, match="not a data set that 'datasets' can load"):
        load_dataset("hf:x", path=tmp_path / "nothing")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"needs the 'datasets' package: pip install 'fedsim\[hf\]'"
    ):
        load_dataset("hf:cifar10")


def test_domains_is_for_folders():
    with pytest.raises(ConfigError, match="set domain_column instead"):
        load_dataset("hf:cifar10", domains=True)
