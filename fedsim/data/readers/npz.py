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
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedsim.data.readers.source import SPLITS, Columns, Part, Source, missing_path, pick, split_name
from fedsim.errors import DataError, did_you_mean

__all__ = ["read_npz"]

_ROWS = ("x", "images", "image", "data", "features", "feats", "f")
_LABELS = ("y", "labels", "label", "targets", "target", "l")
_CLIENTS = ("client", "clients", "client_id", "client_ids")
_DOMAINS = ("domain", "domains", "domain_id", "domain_ids")
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
) -> tuple[dict[str, Part], bool]:
    """The splits, and whether they are features."""
    wanted = {
        "rows": (columns.image,) if columns.image else _ROWS,
        "labels": (columns.label,) if columns.label else _LABELS,
        "clients": (columns.client,) if columns.client else _CLIENTS,
        "domains": (columns.domain,) if columns.domain else _DOMAINS,
    }
    found = {
        split: {what: _split_key(archive, names, split) for what, names in wanted.items()}
        for split in SPLITS
    }
    keys = {split: named for split, named in found.items() if named["rows"]}
    shot_keys = {k.removeprefix("keys_") for k in archive.keys if k.startswith("keys_")}
    if "train" not in keys and shot_keys:
        name = _shot_key(archive.path, shot_keys, shots, notes)
        keys["train"] = {"rows": f"keys_{name}", "labels": f"keylab_{name}"}
    if not keys:
        return _read_flat(archive, columns)
    if "train" not in keys:  # flat x and y beside x_test and y_test
        flat = {what: next((n for n in w if n in archive.keys), None) for what, w in wanted.items()}
        if flat["rows"] and flat["labels"]:
            keys["train"] = flat
    parts = {}
    for split, named in keys.items():
        rows, labels = named["rows"], named["labels"]
        if not rows or not labels or labels not in archive.keys:
            if columns.label and rows:
                hint = did_you_mean(columns.label, archive.keys)
                if columns.label in archive.keys:
                    hint = "give its name without the split"
                raise DataError(
                    f"{archive.path}: label_column is {columns.label!r}, but the {split} split "
                    f"has {rows!r} and no '{columns.label}_{split}': {hint}"
                )
            raise DataError(
                f"{archive.path}: the {split} split has {rows!r} but no labels: "
                f"keys are {', '.join(archive.keys)}"
            )
        extra = {what: archive[key] for what in ("clients", "domains") if (key := named.get(what))}
        parts[split] = Part(archive[rows], archive[labels], f"{archive.path}: {rows}", **extra)
    for name in ("image", "label", "client", "domain"):
        given = getattr(columns, name)
        what = {"image": "rows", "label": "labels", "client": "clients", "domain": "domains"}[name]
        if given and not any(named.get(what) for named in keys.values()):
            raise DataError(f"{archive.path} has no {given!r}: {did_you_mean(given, archive.keys)}")
    first = next(iter(keys.values()))["rows"] or ""
    return parts, _are_features(first, next(iter(parts.values())))


def _split_key(archive: _Archive, names: tuple[str, ...], split: str) -> str | None:
    """The key of one column of one split, e.g. `x_train` or `train_x`."""
    for name in names:
        for word in SPLITS[split]:
            for key in (f"{name}_{word}", f"{word}_{name}"):
                if key in archive.keys:
                    return key
    return None


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


def _read_flat(archive: _Archive, columns: Columns) -> tuple[dict[str, Part], bool]:
    """One `x` and `y`, cut by flags or a `split` column where there is one."""
    where = str(archive.path)
    rows_key = pick(columns.image, _ROWS, archive.keys, where)
    label_key = pick(columns.label, _LABELS, archive.keys, where)
    for key, what, option, usual in (
        (rows_key, "images or features", "image_column", _ROWS),
        (label_key, "labels", "label_column", _LABELS),
    ):
        if key is None:
            raise DataError(
                f"{where} has no {what} under a usual key ({', '.join(usual)}): set {option} to "
                f"one of {', '.join(archive.keys)}"
            )
    client_key = pick(columns.client, _CLIENTS, archive.keys, where)
    domain_key = pick(columns.domain, _DOMAINS, archive.keys, where)
    assert rows_key
    assert label_key
    values = archive[rows_key]
    whole = Part(
        rows=values,
        labels=archive[label_key],
        where=f"{where}: {rows_key}",
        clients=archive[client_key] if client_key else None,
        domains=archive[domain_key] if domain_key else None,
    )
    are_features = _are_features(rows_key, whole)
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
            rows = values[mask]
            parts[name] = Part(rows, whole.labels[mask], whole.where, **columns_of)
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


def _are_features(key: str, part: Part) -> bool:
    """Features are float (N, d), or whatever is called so."""
    rows = part.rows
    assert isinstance(rows, np.ndarray)
    named = any(word in _FEATURE_NAMES for word in key.lower().split("_"))
    return named or (rows.ndim == 2 and rows.dtype.kind == "f")
