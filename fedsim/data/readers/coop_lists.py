"""The three formats in which CoOp's data sets list their images."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fedsim.data.readers.source import SPLITS, images_in
from fedsim.errors import DataError, did_you_mean

Listing = tuple[list[str], list[int]]
"""Images, relative to their common folder, and their labels."""


@dataclass(frozen=True)
class Lists:
    """The content of the lists of a data set.

    Attributes:
        splits: Split name (train, val, test) -> images and labels.
        classnames: In label order, underscores read as spaces.
        notes: What the reader decided.
    """

    splits: dict[str, Listing]
    classnames: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def read_split(lists: Sequence[Path], images: Path) -> Lists:
    """Read `split_zhou_*.json`: `{"train": [[image, label, class name], ...], "val", "test"}`.

    Raises:
        DataError: The file is no such list, a label has no name or two, labels leave a gap, an
            image is missing or stands in two splits.
    """
    path = lists[0]
    tree = _load_json(path)
    splits: dict[str, Listing] = {}
    names: dict[int, str] = {}
    for split in SPLITS:
        entries = tree.get(split)
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path}: {split!r} is not a list of images: copy the file again")
        files, labels = [], []
        for index, entry in enumerate(entries):
            match entry:
                case [str(file), int(label), str(name)] if label >= 0:
                    pass
                case _:
                    raise DataError(
                        f"{path}: {split}[{index}] is {_short(entry)}, not [image, label, name]"
                    )
            if names.setdefault(label, name) != name:
                raise DataError(
                    f"{path}: label {label} is {names[label]!r} and, in {split}[{index}], {name!r}"
                )
            files.append(file)
            labels.append(label)
        splits[split] = files, labels
    absent = sorted(set(range(max(names) + 1)) - set(names))
    if absent:
        raise DataError(
            f"{path}: labels go up to {max(names)}, but {', '.join(map(str, absent[:5]))} "
            f"{'is' if len(absent) == 1 else 'are'} not used: number the classes without gaps"
        )
    _check_images(path, images, splits)
    return Lists(splits, tuple(names[label].replace("_", " ") for label in range(len(names))))


def read_aircraft(lists: Sequence[Path], images: Path) -> Lists:
    """Read `variants.txt` (class names) and `images_variant_{split}.txt` (image, class name).

    Raises:
        DataError: A class is unknown, an image is missing or stands in two splits.
    """
    variants, *of_splits = lists
    names = [line for line in _lines(variants) if line]
    label_of = {name: label for label, name in enumerate(names)}
    splits: dict[str, Listing] = {}
    for split, path in zip(SPLITS, of_splits, strict=True):
        files, labels = [], []
        for number, line in enumerate(_lines(path), 1):
            image, _, name = line.partition(" ")
            if line and name not in label_of:
                raise DataError(
                    f"{path}:{number}: {name!r} is not in {variants.name}: "
                    f"{did_you_mean(name, names)}"
                )
            if line:
                files.append(f"{image}.jpg")
                labels.append(label_of[name])
        splits[split] = files, labels
    _check_images(variants, images, splits)
    return Lists(splits, tuple(names))


def read_imagenet(lists: Sequence[Path], images: Path) -> Lists:
    """Read `classnames.txt` (folder, class name) and list `{train,val}/{folder}/`.

    Labels number the folders of `train` in sorted order. Two of CLIP's names stand for two classes
    each; the second one gets an underscore, which prompts read as a space, so that tables tell
    them apart.

    Raises:
        DataError: A folder has no name, is empty, or is not there.
    """
    path = lists[0]
    names = dict(line.split(" ", 1) for line in _lines(path) if " " in line)
    folders = _folders(images / "train")
    label_of = {folder: label for label, folder in enumerate(folders)}
    splits: dict[str, Listing] = {}
    for split, part in (("train", "train"), ("test", "val")):
        files: list[str] = []
        labels: list[int] = []
        for folder in _folders(images / part):
            if folder not in names:
                raise DataError(f"{path} has no name for the class {images / part / folder}")
            if folder not in label_of:
                raise DataError(f"{images / 'train'} has no folder {folder}, {images / part} has")
            here = images / part / folder
            found = images_in(here)
            files += [f"{part}/{folder}/{file}" for file in found]
            labels += [label_of[folder]] * len(found)
        splits[split] = files, labels
    notes = ["test: ImageNet's validation set"]
    classnames: list[str] = []
    for folder in folders:
        name = names[folder].replace("_", " ")
        if name in classnames:
            notes.append(f"{name!r} names two classes: {folder} is written {name + '_'!r}")
        classnames.append(f"{name}_" if name in classnames else name)
    return Lists(splits, tuple(classnames), notes)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # often a web page that was saved in its place
        raise DataError(f"{path}: not readable as JSON ({error}): copy it again") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected an object with train, val and test, not {_short(tree)}")
    return tree


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as text ({error}): copy it again") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _folders(root: Path) -> list[str]:
    """Class folders in sorted order."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; it holds one folder of images per class")
    with os.scandir(root) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not found:
        raise DataError(
            f"{root} holds no class folders: sort the images into folders such as n01440764/"
        )
    return found


def _check_images(path: Path, images: Path, splits: dict[str, Listing]) -> None:
    """All listed images exist, each in one split. One look at every folder, not at every image."""
    seen: dict[str, str] = {}
    of_folder: dict[str, list[str]] = defaultdict(list)
    for split, (files, _) in splits.items():
        for file in files:
            if seen.setdefault(file, split) != split:
                raise DataError(f"{path}: {file} is in {seen[file]} and in {split}")
            parts = PurePosixPath(file)
            if parts.is_absolute() or ".." in parts.parts:
                raise DataError(f"{path}: {file} is not below {images}: give relative paths")
            of_folder[str(parts.parent)].append(parts.name)
    missing = []
    for folder, files in of_folder.items():
        there = set(os.listdir(images / folder)) if (images / folder).is_dir() else set()
        missing += [images / folder / file for file in files if file not in there]
    if missing:
        raise DataError(
            f"{path} names {len(seen)} images, {len(missing)} of which are missing, "
            f"e.g. {missing[0]}: unpack the archive again"
        )
