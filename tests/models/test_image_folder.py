"""Images made elsewhere: which files stand for which class, and what is said of missing ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim.errors import DataError, ModelError
from fedsim.models.generator import PRETRAINED, load_generator
from fedsim.models.image_folder import ImageFolder, is_image_folder

NAMES = ["tabby cat", "Golden_Retriever"]


def paint(path: Path, grey: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(3):
        paint(tmp_path / "Tabby_Cat" / f"{number}.png", 10 * number)
        paint(tmp_path / "golden retriever" / f"{2 - number}.bmp", 100 + number, (3, 9))
    paint(tmp_path / "wolf" / "0.png", 255)
    (tmp_path / "Tabby_Cat" / "notes.txt").write_text("not an image")
    paint(tmp_path / "Tabby_Cat" / ".hidden.png", 250)
    return tmp_path


def test_classes_are_found_by_name_and_files_taken_in_order(root: Path):
    assert is_image_folder(str(root))
    folder = ImageFolder(root, NAMES, 2)
    shades = [[np.asarray(folder.image(c, i))[0, 0].tolist() for i in range(2)] for c in range(2)]
    assert shades == [[[0] * 3, [10] * 3], [[102] * 3, [101] * 3]]
    assert folder.image(0, 0).size == (6, 4)
    assert folder.image(1, 0).size == (3, 9)


def test_all_that_is_missing_is_told_at_once(root: Path):
    names = [*NAMES, "wolf", "tabby ct", "zebra"]
    with pytest.raises(ModelError) as caught:
        ImageFolder(root, names, 3)
    text = str(caught.value)
    assert "class 'wolf' has 1 of 3 images" in text
    assert "class 'tabby ct' has no folder; did you mean 'tabby cat'?" in text
    assert "class 'zebra' has no folder; known: golden retriever, tabby cat, wolf" in text
    assert "Retriever" not in text
    assert "cache.images_per_class" in text
    with pytest.raises(ModelError, match="and 3 more"):
        ImageFolder(root, [f"class {n}" for n in range(13)], 1)


def test_two_folders_of_one_class_are_refused(root: Path):
    paint(root / "tabby cat" / "0.png", 1)
    with pytest.raises(ModelError, match="has 2 folders, Tabby_Cat and tabby cat: join them"):
        ImageFolder(root, NAMES, 1)


def test_a_broken_image_is_named(root: Path):
    (root / "Tabby_Cat" / "0.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"0\.png: not a readable image"):
        ImageFolder(root, NAMES, 1).image(0, 0)


def test_pipelines_and_names_are_no_image_folders(root: Path, tmp_path: Path):
    assert not is_image_folder("tiny-diffusion")
    assert not is_image_folder("stabilityai/sd-turbo")
    assert not is_image_folder(str(PRETRAINED / "tiny-diffusion"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not is_image_folder(str(empty))
    with pytest.raises(ModelError, match="and no set of images"):
        load_generator(str(empty))
