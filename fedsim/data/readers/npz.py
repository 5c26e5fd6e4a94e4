"""Reading `.npz` archives of images or of precomputed features.

Keys, tried in this order (`image_column` and the others name `x`, `y`, ... when they are called
something else):

- rows: `x`, `images`, `image`, `data`, `features`, `feats`, `f`; float (N, d) are features
- labels: `y`, `labels`, `label`, `targets`, `target`, `l`
- optional: `client(s)`, `client_id(s)`; `domain(s)`, `domain_id(s)`
- splits, either as keys `x_train`, `train_x` (train, val or valid or validation, test), or as a
  column beside flat `x` and `y`: `is_test`, `is_local_test`, `is_val`, or `split` (train, val,
  test, or 0, 1, 2); `x` and `y` beside `x_test` and `y_test` are train
- few-shot features: `keys_16` and `keylab_16` are the train split for `shots: 16`
- `classnames` or `class_names`; `text_f` or `text_features`, with `text_class` when they are not
  in label order
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedsim.data.readers.source import (
    SPLITS,
    Columns,
    FoundSplit,
    Source,
    missing_path,
    pick,
    split_name,
)
from fedsim.errors import DataError, did_you_mean

__all__ = ["read_npz"]

_KEYS = {
    "image": ("x", "images", "image", "data", "features", "feats", "f"),
    "label": ("y", "labels", "label", "targets", "target", "l"),
    "client": ("client", "clients", "client_id", "client_ids"),
    "domain": ("domain", "domains", "domain_id", "domain_ids"),
}
"""A column, as `Columns` calls it -> the keys it is looked for under."""
_FEATURE_NAMES = ("features", "feats", "f", "keys")

_DAMAGE = (
    OSError,
    EOFError,
    MemoryError,
    NotImplementedError,  # a compression method that Python lacks
    RuntimeError,  # encrypted
    zlib.error,
    zipfile.BadZipFile,
)


class _Archive:
    """An open archive whose every failure is a `DataError`."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self.path = path
        try:
            loaded = np.load(handle, allow_pickle=False)
        except (*_DAMAGE, ValueError) as error:
            reason = "it is no zip file" if "allow_pickle" in str(error) else error
            raise DataError(
                f"{path}: not a readable .npz archive, perhaps truncated ({reason}): copy it again"
            ) from error
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path} holds one bare array: save x and y together with np.savez")
        self.archive = loaded
        self.keys: list[str] = list(loaded.files)
        if not self.keys:
            raise DataError(f"{path} is empty: it needs images (x) and labels (y)")

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            array = self.archive[key]
        except _DAMAGE as error:
            raise DataError(f"{self.path}: {key!r} is damaged ({error}): copy it again") from error
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise DataError(
                    f"{self.path}: {key!r} is a pickled object array, which is never loaded: save "
                    "it with a plain dtype"
                ) from error
            raise DataError(f"{self.path}: {key!r} is damaged ({error}): copy it again") from error
        if not isinstance(array, np.ndarray) or array.ndim == 0:
            raise DataError(f"{self.path}: {key!r} is not an array with one row per sample")
        return array

    def first(self, *keys: str) -> np.ndarray | None:
        """The first of `keys` that is there."""
        return next((self[key] for key in keys if key in self.keys), None)


def read_npz(path: Path, columns: Columns, shots: int | None) -> Source:
    """Read an archive (keys: see the module).

    Args:
        path: The `.npz` file.
        columns: Keys that are not called as usual.
        shots: Which `keys_*` to take, where the archive has them; None = the most.

    Raises:
        DataError: The file is missing, damaged or pickled, or a key is not there.
    """
    if not path.exists():
        raise missing_path(path)
    with path.open("rb") as handle:  # NumPy leaves a broken file open
        archive = _Archive(path, handle)
        notes: list[str] = []
        parts, are_features = _read_parts(archive, columns, shots, notes)
        few_shot = "keys_" in parts["train"].where if "train" in parts else False
        names = archive.first("classnames", "class_names")
        if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
            raise DataError(f"{path}: classnames must be strings (num_classes,)")
        text = archive.first("text_f", "text_features")
        ids = archive.first("text_class")
        if text is not None and ids is None:
            ids = np.arange(len(text))
    return Source(
        parts=parts,
        are_features=are_features,
        classnames=None if names is None else tuple(str(n) for n in names.astype(str)),
        text=None if text is None or ids is None else (text, ids),
        few_shot=few_shot,
        notes=notes,
    )


def _read_parts(
    archive: _Archive, columns: Columns, shots: int | None, notes: list[str]
) -> tuple[dict[str, FoundSplit], bool]:
    """The splits, and whether they are features."""
    given = {column: getattr(columns, column) for column in _KEYS}
    wanted = {c: (given[c],) if given[c] else usual for c, usual in _KEYS.items()}
    found = {s: {c: _split_key(archive, k, s) for c, k in wanted.items()} for s in SPLITS}
    keys = {split: named for split, named in found.items() if named["image"]}
    shot_keys = {k.removeprefix("keys_") for k in archive.keys if k.startswith("keys_")}
    if "train" not in keys and shot_keys:
        name = _shot_key(archive.path, shot_keys, shots, notes)
        keys["train"] = {"image": f"keys_{name}", "label": f"keylab_{name}"}
    if not keys:
        return _read_flat(archive, columns)
    if "train" not in keys:  # flat x and y beside x_test and y_test
        flat = {c: _present(archive, names) for c, names in wanted.items()}
        if flat["image"] and flat["label"]:
            keys["train"] = flat
    for split, named in keys.items():
        if named["label"] not in archive.keys:
            raise _no_labels(archive, split, str(named["image"]), columns.label)
    for column, name in given.items():
        if name and not any(named.get(column) for named in keys.values()):
            raise DataError(f"{archive.path} has no {name!r}: {did_you_mean(name, archive.keys)}")
    parts = {split: _part(archive, named) for split, named in keys.items()}
    first = next(iter(keys))
    return parts, _are_features(str(keys[first]["image"]), parts[first])


def _split_key(archive: _Archive, names: tuple[str, ...], split: str) -> str | None:
    """The key of one column of one split, e.g. `x_train` or `train_x`."""
    words = SPLITS[split]
    keys = (key for n in names for word in words for key in (f"{n}_{word}", f"{word}_{n}"))
    return _present(archive, keys)


def _present(archive: _Archive, keys: Iterable[str]) -> str | None:
    """The first of these keys that the archive has."""
    return next((key for key in keys if key in archive.keys), None)


def _part(archive: _Archive, named: Mapping[str, str | None]) -> FoundSplit:
    """The columns under the given keys."""
    found = {column: archive[key] for column, key in named.items() if key}
    where = f"{archive.path}: {named['image']}"
    clients, domains = found.get("client"), found.get("domain")
    return FoundSplit(found["image"], found["label"], where, clients=clients, domains=domains)


def _no_labels(archive: _Archive, split: str, rows: str, label: str | None) -> DataError:
    """The error for a split whose labels are not under the usual key, or not under `label`."""
    if not label:
        return DataError(
            f"{archive.path}: the {split} split has {rows!r} but no labels: "
            f"keys are {', '.join(archive.keys)}"
        )
    hint = "give its name without the split"
    if label not in archive.keys:
        hint = did_you_mean(label, archive.keys)
    return DataError(
        f"{archive.path}: label_column is {label!r}, but the {split} split has {rows!r} and no "
        f"'{label}_{split}': {hint}"
    )


def _shot_key(path: Path, known: set[str], shots: int | None, notes: list[str]) -> str:
    """Which few-shot set to train on."""
    numbers = sorted((k for k in known if k.isdigit()), key=int)
    if shots is None and numbers:
        notes.append(
            f"train is the {numbers[-1]}-shot set keys_{numbers[-1]} (set shots to choose)"
        )
        return numbers[-1]
    if str(shots) not in known:
        raise DataError(f"{path} has no keys_{shots}: choose shots from {', '.join(numbers)}")
    return str(shots)


def _read_flat(archive: _Archive, columns: Columns) -> tuple[dict[str, FoundSplit], bool]:
    """One `x` and `y`, cut by flags or a `split` column where there is one."""
    where = str(archive.path)
    found = {c: pick(getattr(columns, c), usual, archive.keys, where) for c, usual in _KEYS.items()}
    for column, what in (("image", "images or features"), ("label", "labels")):
        if found[column] is None:
            raise DataError(
                f"{where} has no {what} under a usual key ({', '.join(_KEYS[column])}): set "
                f"{column}_column to one of {', '.join(archive.keys)}"
            )
    whole = _part(archive, found)
    are_features = _are_features(str(found["image"]), whole)
    split = _split_column(archive, len(whole.labels))
    if split is None:
        return {"train": whole}, are_features
    parts = {}
    for name in SPLITS:
        mask = split == name
        if mask.any() and len(whole.rows) == len(mask):
            columns_of = {
                what: None if value is None or len(value) != len(mask) else value[mask]
                for what, value in (("clients", whole.clients), ("domains", whole.domains))
            }
            parts[name] = FoundSplit(
                whole.rows[mask], whole.labels[mask], whole.where, **columns_of
            )
    return parts or {"train": whole}, are_features


def _split_column(archive: _Archive, count: int) -> np.ndarray | None:
    """The split of each row by name, or None when the archive does not say."""
    split = np.full(count, "train", dtype="U5")
    said = False
    for key in ("split", "is_val", "is_local_val", "is_test", "is_local_test"):
        if key not in archive.keys:
            continue
        values, said = archive[key], True
        if values.shape != (count,):
            raise DataError(f"{archive.path}: {key!r} has shape {values.shape} for {count} labels")
        if key != "split":
            if values.dtype.kind not in "bui" or not np.isin(values, (0, 1)).all():
                raise DataError(f"{archive.path}: {key!r} must hold only 0 and 1")
            split[values.astype(bool)] = "val" if key.endswith("val") else "test"
            continue
        for value in np.unique(values):
            name = dict(enumerate(SPLITS)).get(int(value)) if values.dtype.kind in "ui" else None
            name = name or split_name(str(value.decode() if values.dtype.kind == "S" else value))
            if name is None:
                raise DataError(
                    f"{archive.path}: 'split' holds {value!s}: use train, val, test or 0, 1, 2"
                )
            split[values == value] = name
    return split if said else None


def _are_features(key: str, part: FoundSplit) -> bool:
    """Features are float (N, d), or whatever is called so."""
    rows = part.rows
    assert isinstance(rows, np.ndarray)
    named = any(word in _FEATURE_NAMES for word in key.lower().split("_"))
    return named or (rows.ndim == 2 and rows.dtype.kind == "f")
