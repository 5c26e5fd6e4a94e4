"""Reading Hugging Face data sets, from the hub or from a copy on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.images import pixels
from fedsim.data.readers.source import Columns, FoundSplit, Source, pick, split_name
from fedsim.errors import DataError

__all__ = ["read_huggingface"]

_MAX_BYTES = 8 * 2**30
"""Decoded images are held in memory; above this they are refused."""
_IMAGES = ("image", "img", "images", "picture", "x")
_LABELS = ("label", "labels", "fine_label", "class", "target", "y")
_CLIENTS = ("client_id", "client", "writer_id", "user_id")
_DOMAINS = ("domain", "domain_id")


def read_huggingface(
    name: str, path: Path | None, columns: Columns, image_size: int | None
) -> Source:
    """Load a data set with the `datasets` package and decode its images.

    Args:
        name: `NAME` or `NAME:CONFIG` on the hub, or a folder.
        path: A copy made with `save_to_disk`, used instead of the hub.
        columns: Columns that are not called as usual.
        image_size: See `ImagePaths`.

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
    label = _column(columns.label, _LABELS, first, where, "label_column")
    names = getattr(first.features[label], "names", None)
    parts = {
        split: _part(rows, columns, label, f"{where} {split}", image_size)
        for split, rows in ours.items()
    }
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
    except Exception as error:  # the package raises whatever its network stack raises
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


def _column(given: str | None, usual: tuple[str, ...], rows: Any, where: str, option: str) -> str:
    """A column that must be there."""
    key = pick(given, usual, rows.column_names, where)
    if key is None:
        raise DataError(f"{where}: set {option} to one of {', '.join(rows.column_names)}")
    return key


def _part(
    rows: Any, columns: Columns, label: str, where: str, image_size: int | None
) -> FoundSplit:
    """Decode one split."""
    image = _column(columns.image, _IMAGES, rows, where, "image_column")
    _column(label, (), rows, where, "label_column")
    client = pick(columns.client, _CLIENTS, rows.column_names, where)
    domain = pick(columns.domain, _DOMAINS, rows.column_names, where)
    decoded: list[np.ndarray] = []
    for index, value in enumerate(rows[image]):
        is_image = hasattr(value, "convert")
        array = pixels(value, f"{where} row {index}", image_size) if is_image else np.asarray(value)
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
    return FoundSplit(
        rows=np.stack(decoded) if decoded else np.zeros((0, 1, 1), dtype=np.uint8),
        labels=np.asarray(list(rows[label])),
        where=where,
        clients=np.asarray(list(rows[client])) if client else None,
        domains=np.asarray(list(rows[domain])) if domain else None,
    )
