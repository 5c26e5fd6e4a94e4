"""Reading Hugging Face data sets, from the hub or from a copy on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config.sections import DataConfig
from fedsim.data.images import pixels
from fedsim.data.readers.source import FoundSplit, Source, split_name
from fedsim.errors import DataError, did_you_mean

_MAX_BYTES = 8 * 2**30
"""Decoded images are held in memory; above this they are refused."""
_USUAL = {
    "image": ("image", "img", "images", "picture", "x"),
    "label": ("label", "labels", "fine_label", "class", "target", "y"),
    "client": ("client_id", "client", "writer_id", "user_id"),
    "domain": ("domain", "domain_id"),
}
"""What a column holds -> the names it is looked for under."""


def read_huggingface(name: str, path: Path | None, data: DataConfig) -> Source:
    """Load a data set with the `datasets` package and decode its images.

    Args:
        name: `NAME` or `NAME:CONFIG` on the hub, or a folder.
        path: A copy made with `save_to_disk`, used instead of the hub.
        data: Columns that are not called as usual, and `image_size` (see `ImagePaths`).

    Raises:
        DataError: It cannot be loaded (offline, unknown name), or a column is missing.
    """
    loaded = _load(name, path)
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    ours: dict[str, Any] = {}
    for split, rows in splits.items():
        mapped = split_name(str(split))
        if mapped:
            ours.setdefault(mapped, rows)
    if not ours and len(splits) == 1:
        ours = {"train": next(iter(splits.values()))}
    if not ours:
        raise DataError(
            f"hf:{name} has splits {', '.join(map(str, splits))}: none is train or test"
        )
    where = f"hf:{name}"
    first = next(iter(ours.values()))
    names = getattr(first.features[_column(data, "label", first, where)], "names", None)
    parts = {split: _part(rows, data, f"{where} {split}") for split, rows in ours.items()}
    return Source(parts=parts, classnames=tuple(names) if names else None)


def _load(name: str, path: Path | None) -> Any:
    """The `datasets` object."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"hf:{name} needs the 'datasets' package: pip install 'fedsim[hf]'"
        ) from error
    local = path or (Path(name) if Path(name).is_dir() else None)
    try:
        if local is not None:
            saved = any((local / f).exists() for f in ("dataset_dict.json", "dataset_info.json"))
            return (
                datasets.load_from_disk(str(local)) if saved else datasets.load_dataset(str(local))
            )
        repository, _, config = name.partition(":")
        return datasets.load_dataset(repository, config or None)
    except Exception as error:  # the package passes on errors of its network stack
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        if local is not None:
            raise DataError(
                f"{local}: not a data set that 'datasets' can load ({reason})"
            ) from error
        arguments = ", ".join(repr(part) for part in name.split(":"))
        raise DataError(
            f"cannot load hf:{name} ({reason}); without internet, run datasets.load_dataset("
            f"{arguments}).save_to_disk('DIR') where there is some, copy DIR, and set path: DIR"
        ) from error


def _column(data: DataConfig, what: str, rows: Any, where: str) -> str | None:
    """The column of images, labels, clients or domains: the one named by the user, or a usual one.

    Raises:
        DataError: The one named is not there, or there is no usual one and it is needed.
    """
    given, known = getattr(data, f"{what}_column"), list(rows.column_names)
    if given is not None and given not in known:
        raise DataError(f"{where} has no {given!r}: {did_you_mean(given, known)}")
    found = given or next((name for name in _USUAL[what] if name in known), None)
    if found is None and what in ("image", "label"):
        raise DataError(f"{where}: set {what}_column to one of {', '.join(known)}")
    return found


def _part(rows: Any, data: DataConfig, where: str) -> FoundSplit:
    """Decode one split."""
    columns = {what: _column(data, what, rows, where) for what in _USUAL}
    size, decoded = data.image_size, list[np.ndarray]()
    for index, value in enumerate(rows[columns["image"]]):
        is_image = hasattr(value, "convert")
        array = pixels(value, f"{where} row {index}", size) if is_image else np.asarray(value)
        if decoded and array.shape != decoded[0].shape:
            raise DataError(
                f"{where} row {index} has shape {array.shape}, row 0 {decoded[0].shape}: set "
                "image_size, e.g. image_size: 224"
            )
        if not decoded and array.nbytes * len(rows) > _MAX_BYTES:
            raise DataError(
                f"{where}: {len(rows)} images of {array.nbytes} bytes exceed "
                f"{_MAX_BYTES // 2**30} GiB of memory: set image_size, or save them as a folder"
            )
        decoded.append(array)
    ids = {c: np.asarray(list(rows[n])) for c, n in columns.items() if n and c != "image"}
    return FoundSplit(
        rows=np.stack(decoded) if decoded else np.zeros((0, 1, 1), dtype=np.uint8),
        labels=ids["label"],
        where=where,
        clients=ids.get("client"),
        domains=ids.get("domain"),
    )
