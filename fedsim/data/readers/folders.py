"""Reading a folder of images.

    root/{class}/*.jpg                   test and val are carved
    root/{train,val,test}/{class}/*.jpg  val and test are optional
    root/{domain}/{class}/*.jpg          with `domains: true`

Class names are the folder names with underscores as spaces, in sorted order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.images import ImagePaths
from fedsim.data.readers.source import FoundSplit, Source, images_in, missing_path, split_name
from fedsim.errors import DataError


def read_folder(root: Path, domains: bool, image_size: int | None) -> Source:
    """List a folder.

    Args:
        root: The folder.
        domains: Its sub-folders are domains, theirs are classes.
        image_size: See `ImagePaths`.

    Raises:
        DataError: The folder is missing or holds no images in that layout, or a class folder
            is empty.
    """
    if not root.is_dir():
        raise missing_path(root)
    top = _folders(root)
    splits = {split_name(folder.name): folder for folder in top}
    if "train" in splits and not domains and _folders(splits["train"]):
        groups = {name: {"": folder} for name, folder in splits.items() if name}
    elif domains:
        groups = {"train": {folder.name: folder for folder in top}}
    else:
        groups = {"train": {"": root}}
    classes = sorted(
        {c.name for group in groups.values() for folder in group.values() for c in _folders(folder)}
    )
    if not classes:
        layout = "{domain}/{class}" if domains else "{class}"
        raise DataError(f"{root}: no images: expected sub-folders {layout} of image files")
    parts = {s: _part(root, g, classes, domains, image_size) for s, g in groups.items()}
    return Source(parts, classnames=tuple(name.replace("_", " ") for name in classes))


def _folders(root: Path) -> list[Path]:
    """Sub-folders in sorted order, hidden ones left out."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _part(
    root: Path, group: dict[str, Path], classes: list[str], domains: bool, image_size: int | None
) -> FoundSplit:
    """All images of one split."""
    files: list[str] = []
    labels: list[int] = []
    of_domain: list[str] = []
    for domain, folder in group.items():
        for class_folder in _folders(folder):
            try:
                images = images_in(class_folder)
            except DataError as error:
                raise _wrong_layout(class_folder, domains) or error from None
            below = class_folder.relative_to(root).as_posix()
            files += [f"{below}/{image}" for image in images]
            labels += [classes.index(class_folder.name)] * len(images)
            of_domain += [domain] * len(images)
    return FoundSplit(
        rows=ImagePaths(root.resolve(), tuple(files), image_size),
        labels=np.array(labels, dtype=np.int64),
        where=str(root),
        domains=np.array(of_domain) if domains else None,
    )


def _wrong_layout(folder: Path, domains: bool) -> DataError | None:
    """The error for a class folder that holds folders instead of images."""
    if not _folders(folder):
        return None
    if domains:
        hint = "the layout is deeper than {domain}/{class}"
    else:
        hint = "if the layout is {domain}/{class}, set domains: true"
    return DataError(f"{folder} holds folders instead of images: {hint}")
