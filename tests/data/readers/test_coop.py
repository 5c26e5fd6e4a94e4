"""CoOp's eleven data sets: layouts, splits, prompts, and what is said when something is wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedsim
from fedsim.config import Experiment
from fedsim.config.sections import DataConfig
from fedsim.data import ImagePaths, load_dataset
from fedsim.data.from_config import DataSource
from fedsim.data.readers.coop import COOP_SETS
from fedsim.errors import ConfigError, DataError
from tests.conftest import ROOT
from tests.helpers import experiment, run

WITH_LIST = sorted(set(COOP_SETS) - {"imagenet", "fgvc_aircraft"})
CLASSES = ("sea_horse", "ant", "crab")
Change = Callable[[dict[str, Any]], Any]


def draw(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wide = np.full((6, 8 + value % 3, 3), value % 256, dtype=np.uint8)  # of unequal sizes
    Image.fromarray(wide).save(path)


def with_list(root: Path, name: str = "caltech101", per_class: int = 7) -> Path:
    """A data set with a `split_zhou_*.json`: 5 train, 6 val and 3 test images of each class."""
    spec = COOP_SETS[name]
    place = root / spec.folder
    sizes = {"train": per_class, "val": 6, "test": 3}
    tree: dict[str, list[tuple[str, int, str]]] = {split: [] for split in sizes}
    value = 0
    for label, classname in enumerate(CLASSES):
        for split, count in sizes.items():
            for index in range(count):
                file = f"{classname}/{split}_{index:04}.jpg"
                draw(place / spec.images / file, value := value + 1)
                tree[split].append((file, label, classname))
    (place / spec.lists[0]).write_text(json.dumps(tree))
    return root


def aircraft(root: Path, folder: str = "fgvc_aircraft") -> Path:
    place = root / folder
    (place / "images").mkdir(parents=True)
    (place / "variants.txt").write_text("F/A-18\nModel B200\n")
    number = 1000
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        lines = []
        for variant in ("F/A-18", "Model B200"):
            for _ in range(count):
                number += 1
                draw(place / "images" / f"{number:07}.jpg", number)
                lines.append(f"{number:07} {variant}\n")
        (place / f"images_variant_{split}.txt").write_text("".join(lines))
    return root


def imagenet(root: Path) -> Path:
    place = root / "imagenet"
    folders = {"n03773504": "missile", "n01440764": "tench", "n04008634": "missile"}
    for part, count in (("train", 10), ("val", 3)):
        for at, folder in enumerate(folders):
            for index in range(count):
                name = f"{part}_{folder}_{index}.JPEG"
                draw(place / "images" / part / folder / name, 30 * at + index)
    lines = [f"{folder} {name}\n" for folder, name in folders.items()]
    (place / "classnames.txt").write_text("".join(lines) + "n01443537 goldfish\n")
    return root


def edit(root: Path, change: Change, name: str = "caltech101") -> Path:
    """Change the list of a data set that `with_list` made."""
    path = root / COOP_SETS[name].folder / COOP_SETS[name].lists[0]
    tree = json.loads(path.read_text())
    changed = change(tree)
    path.write_text(json.dumps(tree if changed is None else changed))
    return root


def refused(name: str, path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(name, path=path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- layouts -------------------------------------------------------------------------------------


def test_there_are_eleven_of_them():
    assert len(COOP_SETS) == 11
    assert all(t.count("{}") == 1 for spec in COOP_SETS.values() for t in spec.templates)
    assert len(COOP_SETS["imagenet"].templates) == 7


@pytest.mark.parametrize("name", COOP_SETS)
def test_the_page_says_the_same(name: str):
    page = (ROOT / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")
    row = [line for line in page.splitlines() if line.startswith(f"| `{name}`")][-1]
    spec = COOP_SETS[name]
    assert f"| `{spec.folder}` |" in row
    assert all(f"`{template}`" in page for template in spec.templates)
    assert len(spec.templates) > 1 or f"| `{spec.templates[0]}` |" in row
    assert f"`{spec.lists[0]}`" in row
    assert f"`{spec.images}" in row


@pytest.mark.parametrize("name", WITH_LIST)
def test_a_split_file_is_followed(tmp_path: Path, name: str):
    data = load_dataset(name, path=with_list(tmp_path, name))
    assert data.name == name
    assert data.classnames == ("sea horse", "ant", "crab")  # in label order, not sorted
    assert data.templates == COOP_SETS[name].templates
    assert [len(data.train), len(data.val), len(data.test)] == [21, 18, 9]
    assert isinstance(data.train.images, ImagePaths)
    assert all(f.split("/")[1].startswith("test_") for f in data.test.images.files)
    for file, label in zip(data.train.images.files, data.train.labels, strict=True):
        assert file.split("/")[0] == CLASSES[label]
    assert data.train.load_images(np.array([0, 20])).shape == (2, 224, 224, 3)


def test_the_path_may_be_the_common_folder_or_the_sets_own(tmp_path: Path, monkeypatch):
    root = with_list(tmp_path / "data")
    first = load_dataset("caltech101", path=root)
    own = load_dataset("caltech101", path=root / "caltech-101")
    (root / "caltech-101").rename(root / "renamed")
    renamed = load_dataset("caltech101", path=root / "renamed")
    monkeypatch.chdir(root / "renamed")
    here = load_dataset("caltech101")
    assert {d.fingerprint for d in (own, renamed, here)} == {first.fingerprint}


@pytest.mark.parametrize("folder", ["fgvc_aircraft", "fgvc_aircraft/data"])
@pytest.mark.parametrize("name", ["fgvc_aircraft", "fgvc"])
def test_aircraft_follow_their_text_files(tmp_path: Path, folder: str, name: str):
    data = load_dataset(name, path=aircraft(tmp_path, folder))
    assert data.classnames == ("F/A-18", "Model B200")
    assert [len(data.train), len(data.val), len(data.test)] == [8, 4, 6]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.images.files[0] == "0001013.jpg"
    assert data.templates == ("a photo of a {}, a type of aircraft.",)


def test_imagenet_is_tested_on_its_validation_set(tmp_path: Path):
    data = load_dataset("imagenet", path=imagenet(tmp_path), val_fraction=0.2)
    # Labels follow the folders; a name that stands for two classes is told apart in tables only.
    assert data.classnames == ("tench", "missile", "missile_")
    assert [len(data.train), len(data.val), len(data.test)] == [24, 6, 9]
    assert all(file.startswith("val/") for file in data.test.images.files)
    parts = data.train.images.files + data.val.images.files
    assert all(file.startswith("train/") for file in parts)
    assert len(set(parts)) == 30
    assert "test: ImageNet's validation set" in data.notes
    assert any("'missile' names two classes: n04008634" in note for note in data.notes)


def test_an_underscore_that_tells_names_apart_is_not_in_the_prompts():
    from fedsim.models.clip import load_clip

    clip = load_clip("tiny-clip", device="cpu")
    text = clip.class_embeddings(("missile", "missile_", "tench"), COOP_SETS["imagenet"].templates)
    assert (text[0] == text[1]).all()
    assert not (text[0] == text[2]).all()


def test_an_archive_of_that_name_is_an_archive(tmp_path: Path):
    path = tmp_path / "x.npz"
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(path, x=images, y=np.arange(40) % 4)
    assert load_dataset("dtd", path=path).num_classes == 4


# --- few shots -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shots", "val"), [(1, 1), (2, 2), (5, 4)])
def test_few_shots_of_train_and_at_most_four_of_val(tmp_path: Path, shots: int, val: int):
    root = with_list(tmp_path)
    data = load_dataset("caltech101", path=root, shots=shots, seed=1)
    assert np.bincount(data.train.labels).tolist() == [shots] * 3
    assert np.bincount(data.val.labels).tolist() == [val] * 3
    assert len(data.test) == 9
    again = load_dataset("caltech101", path=root, shots=shots, seed=1)
    assert again.fingerprint == data.fingerprint
    other = load_dataset("caltech101", path=root, shots=shots, seed=2)
    assert other.train.images.files != data.train.images.files


def test_only_images_in_use_are_opened(tmp_path: Path):
    root = with_list(tmp_path)
    used = load_dataset("caltech101", path=root, shots=2).train.images.files
    for file in (root / "caltech-101" / "101_ObjectCategories").rglob("train_*.jpg"):
        if "/".join(file.parts[-2:]) not in used:
            file.write_bytes(b"")
    assert load_dataset("caltech101", path=root, shots=2).train.images.files == used
    assert "not a readable image" in refused("caltech101", root)


def test_carving_imagenet_does_not_read_it(tmp_path: Path):
    root = imagenet(tmp_path)
    first = load_dataset("imagenet", path=root, val_fraction=0.2, shots=3)
    image = root / "imagenet" / "images" / first.val.images.files[0]
    draw(image, 200)
    second = load_dataset("imagenet", path=root, val_fraction=0.2, shots=3)
    assert second.val.images.files == first.val.images.files
    assert second.fingerprint != first.fingerprint


# --- what is wrong is said -----------------------------------------------------------------------


def test_nothing_there(tmp_path: Path):
    text = refused("oxford_flowers", tmp_path)
    for part in (
        f"missing {tmp_path}/oxford_flowers/split_zhou_OxfordFlowers.json, "
        f"{tmp_path}/oxford_flowers/jpg/",
        "oxford_flowers/split_zhou_OxfordFlowers.json, oxford_flowers/jpg/",
        "DATASETS.md of github.com/KaiyangZhou/CoOp",
        "www.robots.ox.ac.uk/~vgg/data/flowers/102",
    ):
        assert part in text
    assert "cars_train, cars_test/" in refused("stanford_cars", tmp_path / "nowhere")


def test_without_a_path_the_working_directory_is_meant(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="expected in the working directory"):
        load_dataset("dtd")


def test_the_missing_list_is_named(tmp_path: Path):
    root = aircraft(tmp_path)
    (root / "fgvc_aircraft" / "images_variant_val.txt").unlink()
    text = refused("fgvc", root)
    assert f"missing {root}/fgvc_aircraft/images_variant_val.txt;" in text


def test_a_missing_image_is_named(tmp_path: Path):
    root = with_list(tmp_path)
    (root / "caltech-101/101_ObjectCategories/ant/test_0001.jpg").unlink()
    text = refused("caltech101", root)
    assert "names 48 images, 1 of which are missing, e.g. " in text
    assert "ant/test_0001.jpg: unpack the archive again" in text


def _set(split: str, index: int, entry: Any) -> Change:
    def change(tree: dict[str, Any]) -> None:
        tree[split][index] = entry

    return change


def _gap(tree: dict[str, Any]) -> None:
    for entries in tree.values():
        for entry in entries:
            entry[1] += entry[1] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: ["x"], 'expected an object with train, val and test, not ["x"]'),
        (lambda tree: {**tree, "val": []}, "'val' is not a list of images"),
        (lambda tree: {"train": tree["train"]}, "'val' is not a list of images"),
        (_set("train", 2, ["a.jpg", "0", "ant"]), 'train[2] is ["a.jpg", "0", "ant"], not [image'),
        (_set("val", 0, ["a.jpg", -1, "ant"]), 'val[0] is ["a.jpg", -1, "ant"], not [image'),
        (_set("test", 0, ["a.jpg", 0, "bee"]), "label 0 is 'sea_horse' and, in test[0], 'bee'"),
        (_gap, "labels go up to 3, but 2 is not used: number the classes without gaps"),
        (
            _set("test", 0, ["ant/train_0000.jpg", 1, "ant"]),
            "ant/train_0000.jpg is in train and in test",
        ),
        (_set("test", 0, ["../x.jpg", 1, "ant"]), "../x.jpg is not below"),
        (
            lambda tree: {**tree, "train": [e for e in tree["train"] if e[1] != 1]},
            "have no training sample, e.g. 1 (ant)",
        ),
    ],
)
def test_broken_lists(tmp_path: Path, change: Change, message: str):
    assert message in refused("caltech101", edit(with_list(tmp_path), change))


def test_a_web_page_in_place_of_a_list(tmp_path: Path):
    root = with_list(tmp_path)
    (root / "caltech-101" / "split_zhou_Caltech101.json").write_text("<!DOCTYPE html>")
    assert "not readable as JSON (Expecting value" in refused("caltech101", root)


def test_an_unknown_variant(tmp_path: Path):
    root = aircraft(tmp_path)
    path = root / "fgvc_aircraft" / "images_variant_test.txt"
    path.write_text(path.read_text() + "\n0001001 Model B20\n")
    text = refused("fgvc", root)
    assert "images_variant_test.txt:8: 'Model B20' is not in variants.txt: did you mean" in text


def test_imagenet_with_its_validation_images_unsorted(tmp_path: Path):
    root = imagenet(tmp_path)
    val = root / "imagenet" / "images" / "val"
    for file in list(val.rglob("*.JPEG")):
        file.rename(val / file.name)
    for folder in list(val.iterdir()):
        if folder.is_dir():
            folder.rmdir()
    assert "holds no class folders: sort the images into folders" in refused("imagenet", root)


@pytest.mark.parametrize(
    ("part", "folder", "message"),
    [
        ("train", "n09999999", "classnames.txt has no name for the class"),
        ("val", "n01443537", "has no folder n01443537"),
    ],
)
def test_imagenet_with_another_class(tmp_path: Path, part: str, folder: str, message: str):
    root = imagenet(tmp_path)
    draw(root / "imagenet" / "images" / part / folder / "a.JPEG", 1)
    assert message in refused("imagenet", root)


def test_imagenet_with_an_empty_class(tmp_path: Path):
    root = imagenet(tmp_path)
    (root / "imagenet" / "images" / "train" / "n01443537").mkdir()
    assert "n01443537: this class folder holds no images" in refused("imagenet", root)


@pytest.mark.parametrize("option", [{"domains": True}, {"label_column": "y"}])
def test_options_of_other_kinds_of_data_are_refused(tmp_path: Path, option: dict):
    with pytest.raises(ConfigError, match=f"{next(iter(option))} does not apply to dtd"):
        load_dataset("dtd", path=tmp_path, **option)


# --- the shared store ----------------------------------------------------------------------------


def test_the_store_knows_the_lists_and_the_folders(tmp_path: Path):
    root = with_list(tmp_path)
    config = DataConfig(name="caltech101", path=str(root))
    first = DataSource(config, 0).identity
    (root / "another_set").mkdir()
    assert DataSource(config, 0).identity == first  # only its own folder is looked at
    draw(root / "caltech-101" / "101_ObjectCategories" / "ant" / "new.jpg", 1)
    second = DataSource(config, 0).identity
    assert second != first
    split = root / "caltech-101" / "split_zhou_Caltech101.json"
    os.utime(split, ns=(1, 1))
    assert DataSource(config, 0).identity != second


def test_a_study_names_it_and_its_folder(tmp_path: Path):
    data = DataConfig(name="dtd", path=str(tmp_path))
    config = Experiment(study="s", method="zero_shot", use="zero_shot", data=data)
    assert config.data.name == "dtd"
    with pytest.raises(DataError, match="missing .*split_zhou_DescribableTextures.json"):
        _ = DataSource(config.data, 0).identity


def test_a_run_from_the_folder_to_the_tables(tmp_path: Path):
    root = with_list(tmp_path)
    config = experiment(
        "caltech101",
        "fedavg_head",
        data__path=str(root),
        data__shots=4,
        models__clip="tiny-clip",
        partition__num_clients=2,
        noise__clients=0.5,
        noise__images="occlusion",
        train__rounds=1,
    )
    study = fedsim.load(run(config, tmp_path / "results"))
    assert study.runs["dataset"].tolist() == ["caltech101"]
    assert study.clients.loc[study.clients["round"] == 0, "num_samples"].sum() == 12
    assert len(study.predictions) == 9  # the official test split, whole
    said = study.events.loc[study.events["kind"] == "data", "message"].tolist()
    assert said == ["val: 12 of 18 samples, 4 per class at most"]


# --- real images ---------------------------------------------------------------------------------


def test_caltech101_as_prepared_by_coop(shared_data: Path, tmp_path: Path):
    real = shared_data / "caltech101_sub"
    if not real.is_dir():
        pytest.skip("no caltech101_sub in shared/data")
    place = tmp_path / "caltech-101"
    place.mkdir()
    (place / "101_ObjectCategories").symlink_to(real)
    tree: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    folders = sorted(folder for folder in real.iterdir() if folder.is_dir())
    for label, folder in enumerate(folders):
        files = sorted(file.name for file in folder.glob("*.jpg"))
        for split, part in (("train", files[:8]), ("val", files[8:14]), ("test", files[14:])):
            tree[split] += [(f"{folder.name}/{file}", label, folder.name) for file in part]
    (place / "split_zhou_Caltech101.json").write_text(json.dumps(tree))
    data = load_dataset("caltech101", path=tmp_path, shots=4)
    assert data.num_classes == 59
    assert np.bincount(data.train.labels).tolist() == [4] * 59
    assert np.bincount(data.val.labels).tolist() == [4] * 59
    assert len(data.test) == len(tree["test"])
    assert "sea horse" in data.classnames
    images = data.test.load_images(np.arange(4))
    assert images.shape == (4, 224, 224, 3)
    assert images.std() > 20  # photographs, not blanks
