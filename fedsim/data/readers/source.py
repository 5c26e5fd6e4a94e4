"""The output of a reader: the rows of each split as they were found, before any check."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedsim.data.images import IMAGE_SUFFIXES, ImagePaths
from fedsim.errors import DataError, did_you_mean

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Our name of a split -> the names it goes by in files, folders and columns."""


COLUMNS = ("image", "label", "client", "domain")
"""What a column may hold. The user's name of one is `data.<what>_column`; without a name the usual
ones are tried."""


@dataclass(frozen=True)
class FoundSplit:
    """One split, unchecked.

    Attributes:
        rows: Images or features, any dtype; the first axis counts samples.
        labels: (N,), integers or names.
        clients: (N,), integers or names, or None.
        domains: (N,), integers or names, or None.
        where: What to call it in an error, e.g. "digits.npz: x_train".
    """

    rows: np.ndarray | ImagePaths
    labels: np.ndarray
    where: str
    clients: np.ndarray | None = None
    domains: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """Everything a reader found.

    Attributes:
        parts: Split name (train, val, test) -> rows.
        are_features: The rows are features, not images.
        classnames: In label order, when the source names them.
        text: `(features (M, d), class ids (M,))`, or None.
        few_shot: Train is the few-shot set that was asked for already.
        templates: The data set's own prompts.
        max_val_shots: With `shots`, val is cut to so many samples of each class, or to `shots`.
        carve_seed: Names the carving of missing splits, where hashing all rows would take hours.
        notes: What the reader decided.
    """

    parts: dict[str, FoundSplit]
    are_features: bool = False
    classnames: tuple[str, ...] | None = None
    text: tuple[np.ndarray, np.ndarray] | None = None
    few_shot: bool = False
    templates: tuple[str, ...] | None = None
    max_val_shots: int | None = None
    carve_seed: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """What errors call it."""
        return next(iter(self.parts.values())).where


def images_in(folder: Path) -> list[str]:
    """Names of the images in a class folder, sorted; hidden files are left out.

    Raises:
        DataError: There is none.
    """
    names = sorted(
        name
        for name in os.listdir(folder)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )
    if not names:
        raise DataError(f"{folder}: this class folder holds no images: fill or remove it")
    return names


def split_name(name: str) -> str | None:
    """Our name of the split that a file calls `name`, or None.

    >>> split_name("Validation"), split_name("extra")
    ('val', None)
    """
    return next((ours for ours, known in SPLITS.items() if name.lower() in known), None)


def missing_path(path: Path) -> DataError:
    """The error for a path that is not there, with the nearest name beside it.

    >>> str(missing_path(Path("nowhere/digits.npz")))
    'nowhere/digits.npz: there is no folder nowhere'
    """
    parent = path.parent
    if not parent.is_dir():
        return DataError(f"{path}: there is no folder {parent}")
    beside = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    if not beside:
        return DataError(f"{path}: no such file or folder, and {parent} is empty")
    hint = did_you_mean(path.name, beside)
    if hint.startswith("known") and len(beside) > 8:
        hint = f"{parent} has {len(beside)} entries, none of a similar name"
    return DataError(f"{path}: no such file or folder; {hint}")
