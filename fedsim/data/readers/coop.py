"""The eleven data sets of CoOp (Zhou et al., 2022), laid out as its DATASETS.md describes.

    ROOT/caltech-101/split_zhou_Caltech101.json   {"train": [[image, label, name], ...], "val", ...}
    ROOT/caltech-101/101_ObjectCategories/...     images, as the list names them
    ROOT/fgvc_aircraft/                           variants.txt, images_variant_{train,val,test}.txt
    ROOT/imagenet/                                classnames.txt, images/{train,val}/{n01440764}/

Splits, class names and prompts are those that CoOp, Tip-Adapter and CacheFL report on. ImageNet's
validation set is the test split, as everywhere. CoOp also validates on it; here val is carved out
of train, so that nothing is chosen on test data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.images import ImagePaths
from fedsim.data.readers.coop_lists import read_aircraft, read_imagenet, read_split
from fedsim.data.readers.source import SPLITS, FoundSplit, Source
from fedsim.errors import DataError

IMAGE_SIZE = 224
"""Pixels of a side unless the user says otherwise: what most CLIP encoders take."""
MAX_VAL_SHOTS = 4
"""Validation images per class of the few-shot protocol (Zhou et al., 2022, section 4.1)."""
_GUIDE = "DATASETS.md of github.com/KaiyangZhou/CoOp"


@dataclass(frozen=True)
class CoopSet:
    """Where one data set lies, and its prompts.

    Attributes:
        folder: Its folder under the common root.
        images: The folder of images in that one; empty when the lists name it.
        lists: Files that say which image is what; the first one makes a folder this data set.
        home: The data set's home page.
        templates: Prompts, as in Tip-Adapter.
    """

    folder: str
    images: str
    lists: tuple[str, ...]
    home: str
    templates: tuple[str, ...]


def _split(
    folder: str, images: str, name: str, home: str, template: str = "a photo of a {}."
) -> CoopSet:
    return CoopSet(folder, images, (f"split_zhou_{name}.json",), home, (template,))


_OXFORD = "www.robots.ox.ac.uk/~vgg/data"
_CVL = "data.vision.ee.ethz.ch/cvl/datasets_extra"
_PET = "a photo of a {}, a type of pet."
_FLOWER = "a photo of a {}, a type of flower."
_AIRCRAFT = "a photo of a {}, a type of aircraft."
_FOOD, _EUROSAT = "a photo of {}, a type of food.", "a centered satellite photo of {}."
_UCF = "a photo of a person doing {}."
_IMAGENET = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
_VARIANTS = ("variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS))

COOP_SETS = {
    "imagenet": CoopSet("imagenet", "images", ("classnames.txt",), "image-net.org", _IMAGENET),
    "caltech101": _split("caltech-101", "101_ObjectCategories", "Caltech101", "data.caltech.edu"),
    "oxford_pets": _split("oxford_pets", "images", "OxfordPets", f"{_OXFORD}/pets", _PET),
    "stanford_cars": _split("stanford_cars", "", "StanfordCars", "ai.stanford.edu/~jkrause/cars"),
    "oxford_flowers": _split(
        "oxford_flowers", "jpg", "OxfordFlowers", f"{_OXFORD}/flowers/102", _FLOWER
    ),
    "food101": _split("food-101", "images", "Food101", f"{_CVL}/food-101", _FOOD),
    "fgvc_aircraft": CoopSet(
        "fgvc_aircraft", "images", _VARIANTS, f"{_OXFORD}/fgvc-aircraft", (_AIRCRAFT,)
    ),
    "sun397": _split("sun397", "SUN397", "SUN397", "vision.princeton.edu/projects/2010/SUN"),
    "dtd": _split("dtd", "images", "DescribableTextures", f"{_OXFORD}/dtd", "{} texture."),
    "eurosat": _split("eurosat", "2750", "EuroSAT", "github.com/phelber/EuroSAT", _EUROSAT),
    "ucf101": _split(
        "ucf101", "UCF-101-midframes", "UCF101", "www.crcv.ucf.edu/data/UCF101.php", _UCF
    ),
}
_ALIASES = {"fgvc": "fgvc_aircraft"}


def is_coop(name: str, path: str | Path | None) -> bool:
    """Whether a data set is one of the eleven; an archive under such a name is an archive.

    >>> is_coop("dtd", "data"), is_coop("fgvc", None), is_coop("dtd", "dtd.npz")
    (True, True, False)
    """
    archive = path is not None and Path(path).suffix == ".npz"
    return _ALIASES.get(name, name) in COOP_SETS and not archive


def read_coop(name: str, path: Path | None, image_size: int | None) -> Source:
    """List the images of a data set; none is opened.

    Args:
        name: A key of `COOP_SETS`, or `fgvc`.
        path: The folder of data sets, or the data set's own; None = the working directory.
        image_size: See `ImagePaths`; None = 224.

    Raises:
        DataError: A list or an image is missing, or a list is broken.
    """
    name = _ALIASES.get(name, name)
    lists, images = _find(name, path)
    read = {"imagenet": read_imagenet, "fgvc_aircraft": read_aircraft}.get(name, read_split)
    found = read(lists, images)
    parts = {
        split: FoundSplit(
            rows=ImagePaths(images.resolve(), tuple(files), image_size or IMAGE_SIZE),
            labels=np.array(labels, dtype=np.int64),
            where=str(lists[0]),
        )
        for split, (files, labels) in found.splits.items()
    }
    return Source(
        parts=parts,
        classnames=found.classnames,
        templates=COOP_SETS[name].templates,
        max_val_shots=MAX_VAL_SHOTS,
        carve_seed=name,
        notes=found.notes,
    )


def coop_identity(name: str, path: str | Path | None) -> list[Any]:
    """Identifies the content by its lists, and by names and times of its folders of images.

    The images are not looked at: ImageNet has 1.3 million, and every process asks.

    Raises:
        DataError: A list is missing.
    """
    lists, images = _find(_ALIASES.get(name, name), None if path is None else Path(path))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in lists]
    top = str(images.resolve())
    folders = sorted((at, os.stat(at).st_mtime_ns) for at, _, _ in os.walk(top, followlinks=True))
    return [top, stats, folders]


def _find(name: str, path: Path | None) -> tuple[list[Path], Path]:
    """The lists of a data set and its folder of images, all there.

    Raises:
        DataError: Saying what is missing, the layout, and where to get it.
    """
    spec, root = COOP_SETS[name], path or Path()
    # The archive of fgvc_aircraft holds all of it in a folder `data`.
    places = [root / spec.folder, root, root / spec.folder / "data", root / "data"]
    place = next((p for p in places if (p / spec.lists[0]).is_file()), None)
    if place is None:
        place = next((p for p in places[:2] if p.is_dir() and p.name == spec.folder), places[0])
    lists, images = [place / file for file in spec.lists], place / spec.images
    missing = [str(file) for file in lists if not file.is_file()]
    missing += [] if images.is_dir() else [f"{images}/"]
    if missing:
        wanted = [*spec.lists, f"{spec.images or 'cars_train, cars_test'}/"]
        layout = ", ".join(f"{spec.folder}/{part}" for part in wanted)
        where = f"{root}" if path else "the working directory (data.path says where else)"
        raise DataError(
            f"{name}: missing {', '.join(missing)}; expected in {where}: {layout}; how to get them "
            f"is in {_GUIDE}, the images' home is {spec.home}; a folder of another layout is read "
            f"under another data.name"
        )
    return lists, images
