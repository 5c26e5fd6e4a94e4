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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedsim.config.sections import DataConfig
from fedsim.data.readers.source import SPLITS, FoundSplit, Source, missing_path, split_name
from fedsim.errors import DataError, did_you_mean

_USUAL = {
    "image": ("x", "images", "image", "data", "features", "feats", "f"),
    "label": ("y", "labels", "label", "targets", "target", "l"),
    "client": ("client", "clients", "client_id", "client_ids"),
    "domain": ("domain", "domains", "domain_id", "domain_ids"),
}
"""What a column holds -> the keys it is looked for under."""
_FLAGS = {"is_val": "val", "is_local_val": "val", "is_test": "test", "is_local_test": "test"}
"""A column of 0 and 1 -> the split of the rows that it marks."""
_FEATURE_NAMES = ("features", "feats", "f", "keys")
Named = Mapping[str, str | None]
"""What a column holds -> its key in the archive."""

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
        except (*_DAMAGE, ValueError) as error:
            if "allow_pickle" in str(error):
                raise DataError(
                    f"{self.path}: {key!r} is a pickled object array, which is never loaded: save "
                    "it with a plain dtype"
                ) from error
            raise DataError(f"{self.path}: {key!r} is damaged ({error}): copy it again") from error
        if not isinstance(array, np.ndarray) or array.ndim == 0:
            raise DataError(f"{self.path}: {key!r} is not an array with one row per sample")
        return array

    def first(self, *keys: str) -> str | None:
        """The first of these keys that is there."""
        return next((key for key in keys if key in self.keys), None)

    def get(self, *keys: str) -> np.ndarray | None:
        """The array under the first of these keys that is there."""
        key = self.first(*keys)
        return None if key is None else self[key]


def read_npz(path: Path, data: DataConfig) -> Source:
    """Read an archive (keys: see the module).

    Args:
        path: The `.npz` file.
        data: Keys that are not called as usual; `shots` says which `keys_*` to take, where the
            archive has them (by default the most).

    Raises:
        DataError: The file is missing, damaged or pickled, or a key is not there.
    """
    if not path.exists():
        raise missing_path(path)
    with path.open("rb") as handle:  # NumPy leaves a broken file open
        archive = _Archive(path, handle)
        source = _read_splits(archive, data)
        names = archive.get("classnames", "class_names")
        if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
            raise DataError(f"{path}: classnames must be strings (num_classes,)")
        text, ids = archive.get("text_f", "text_features"), archive.get("text_class")
        if text is not None and ids is None:
            ids = np.arange(len(text))
    return replace(
        source,
        classnames=None if names is None else tuple(str(n) for n in names.astype(str)),
        text=None if text is None or ids is None else (text, ids),
    )


def _read_splits(archive: _Archive, data: DataConfig) -> Source:
    """The rows of every split."""
    where, notes = archive.path, list[str]()
    given = {column: getattr(data, f"{column}_column") for column in _USUAL}
    wanted = {c: (given[c],) if given[c] else usual for c, usual in _USUAL.items()}
    keys: dict[str, Named] = {}
    for split, words in SPLITS.items():
        named: dict[str, str | None] = {}
        for column, names in wanted.items():
            both = ((f"{n}_{w}", f"{w}_{n}") for n in names for w in words)  # x_train or train_x
            named[column] = archive.first(*(key for pair in both for key in pair))
        if named["image"]:
            keys[split] = named
    shots = {key.removeprefix("keys_") for key in archive.keys if key.startswith("keys_")}
    few_shot = "train" not in keys and bool(shots)
    if few_shot:
        number = _shot_key(where, shots, data.shots, notes)
        keys["train"] = {"image": f"keys_{number}", "label": f"keylab_{number}"}
    for split, columns in keys.items():
        if columns["label"] not in archive.keys:
            raise _no_labels(archive, split, str(columns["image"]), data.label_column)
    flat = {column: archive.first(*names) for column, names in wanted.items()}
    only_flat = not keys
    if only_flat or ("train" not in keys and flat["image"] and flat["label"]):
        keys["train"] = flat
    for column, name in given.items():
        if name and not any(named.get(column) for named in keys.values()):
            raise DataError(f"{where} has no {name!r}: {did_you_mean(name, archive.keys)}")
    for column, what in (("image", "images or features"), ("label", "labels")):
        if only_flat and flat[column] is None:
            raise DataError(
                f"{where} has no {what} under a usual key ({', '.join(_USUAL[column])}): set "
                f"{column}_column to one of {', '.join(archive.keys)}"
            )
    parts = {split: _part(archive, named) for split, named in keys.items()}
    first = next(iter(keys))
    are_features = _are_features(str(keys[first]["image"]), parts[first])
    if only_flat:
        parts = _cut(archive, parts["train"])
    return Source(parts, are_features=are_features, few_shot=few_shot, notes=notes)


def _part(archive: _Archive, named: Named) -> FoundSplit:
    """The columns under the given keys."""
    found = {column: archive[key] for column, key in named.items() if key}
    where = f"{archive.path}: {named['image']}"
    return FoundSplit(
        found["image"], found["label"], where, found.get("client"), found.get("domain")
    )


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
        most = numbers[-1]
        notes.append(f"train is the {most}-shot set keys_{most} (set shots to choose)")
        return most
    if str(shots) not in known:
        raise DataError(f"{path} has no keys_{shots}: choose shots from {', '.join(numbers)}")
    return str(shots)


def _cut(archive: _Archive, whole: FoundSplit) -> dict[str, FoundSplit]:
    """Rows without a split in their key, cut by flags or by a `split` column."""
    split = _split_column(archive, len(whole.labels))
    if split is None or len(whole.rows) != len(split):
        return {"train": whole}
    assert isinstance(whole.rows, np.ndarray)
    parts = {}
    for name in SPLITS:
        mask = split == name
        if mask.any():
            ids = (
                None if column is None or len(column) != len(mask) else column[mask]
                for column in (whole.clients, whole.domains)
            )
            parts[name] = FoundSplit(whole.rows[mask], whole.labels[mask], whole.where, *ids)
    return parts


def _split_column(archive: _Archive, count: int) -> np.ndarray | None:
    """The split of each row by name, or None when the archive does not say."""
    said = [key for key in ("split", *_FLAGS) if key in archive.keys]
    split = np.full(count, "train", dtype="U5")
    for key in said:
        values = archive[key]
        if values.shape != (count,):
            raise DataError(f"{archive.path}: {key!r} has shape {values.shape} for {count} labels")
        if key in _FLAGS:
            if values.dtype.kind not in "bui" or not np.isin(values, (0, 1)).all():
                raise DataError(f"{archive.path}: {key!r} must hold only 0 and 1")
            split[values.astype(bool)] = _FLAGS[key]
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
