"""From what a reader found to rows that can be trusted: one dtype, one scale, one label space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.data.images import ImagePaths, channels_last, check_finite, to_uint8
from fedsim.data.readers.source import FoundSplit, Source
from fedsim.errors import ConfigError, DataError, did_you_mean

__all__ = ["CheckedData", "CheckedRows", "tabulate"]


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """Checked rows of one split: uint8 images, image files, or float32 features; int64 columns."""

    rows: np.ndarray | ImagePaths
    labels: np.ndarray
    clients: np.ndarray | None
    domains: np.ndarray | None

    def take(self, indices: np.ndarray) -> CheckedRows:
        """The rows at `indices`."""
        rows = self.rows
        return CheckedRows(
            rows.take(indices) if isinstance(rows, ImagePaths) else rows[indices],
            self.labels[indices],
            None if self.clients is None else self.clients[indices],
            None if self.domains is None else self.domains[indices],
        )


@dataclass(eq=False)
class CheckedData:
    """The splits in one label space."""

    splits: dict[str, CheckedRows]
    classnames: tuple[str, ...]
    domain_names: tuple[str, ...]
    text: np.ndarray | None
    where: str

    def check_classes(self) -> None:
        """Refuse a single class, an empty split, and a class without training samples.

        Raises:
            DataError: One of these.
        """
        num_classes = len(self.classnames)
        if num_classes < 2:
            raise DataError(f"{self.where}: there is one class only: nothing to tell apart")
        for split in ("train", "test"):
            if not len(self.splits[split].labels):
                raise DataError(f"{self.where}: the {split} split is empty")
        sizes = np.bincount(self.splits["train"].labels, minlength=num_classes)
        empty = [f"{i} ({self.classnames[i]})" for i in np.flatnonzero(sizes == 0)]
        if empty:
            raise DataError(
                f"{self.where}: {len(empty)} of {num_classes} classes have no training sample, "
                f"e.g. {', '.join(empty[:5])}: remove them and number the labels from 0"
            )


def tabulate(
    source: Source,
    classnames: Sequence[str] | None,
    only_text_classes: bool,
    notes: list[str],
) -> CheckedData:
    """Check everything that a reader found.

    Args:
        source: From a reader.
        classnames: The user's names, or None.
        only_text_classes: Keep only classes with a text feature.
        notes: What was decided is added here.

    Raises:
        DataError: What is wrong, where, and what to do.
    """
    parts = source.parts
    where = next(iter(parts.values())).where
    for split, part in parts.items():
        _check_shapes(part, split)
    rows = _check_features(parts) if source.are_features else _check_images(parts)
    labels, names = _labels(parts, tuple(classnames) if classnames else source.classnames)
    _check_names(names, where)
    clients, _ = _codes(parts, "clients", where, keep_integers=True)
    domains, domain_names = _codes(parts, "domains", where, keep_integers=False)
    splits = {
        split: CheckedRows(rows[split], labels[split], clients.get(split), domains.get(split))
        for split in parts
    }
    table = CheckedData(splits, names, domain_names, None, where)
    _attach_text(table, source, only_text_classes, notes)
    return table


def _check_shapes(part: FoundSplit, split: str) -> None:
    """Labels are a column as long as the rows; neither is empty."""
    labels = part.labels
    if labels.ndim != 1:
        hint = (
            "are they one-hot? Save labels.argmax(1)" if labels.ndim == 2 else "they must be (N,)"
        )
        raise DataError(f"{part.where}: {split} labels have shape {labels.shape}: {hint}")
    if part.rows is not None and not isinstance(part.rows, ImagePaths) and part.rows.ndim == 0:
        raise DataError(f"{part.where}: {split} rows are a single number, not an array")
    if len(part.rows) != len(labels):
        raise DataError(
            f"{part.where}: {len(part.rows)} {split} rows but {len(labels)} labels: they must match"
        )
    if not len(labels):
        raise DataError(f"{part.where}: the {split} split is empty")


def _check_images(parts: dict[str, FoundSplit]) -> dict[str, np.ndarray | ImagePaths]:
    """uint8, channels last, all splits of one size."""
    arrays: dict[str, np.ndarray] = {}
    result: dict[str, np.ndarray | ImagePaths] = {}
    for split, part in parts.items():
        if isinstance(part.rows, ImagePaths):
            result[split] = part.rows
        else:
            arrays[split] = channels_last(part.rows, f"{part.where} ({split})")
    named = to_uint8({f"{parts[s].where} ({s})": array for s, array in arrays.items()})
    result |= dict(zip(arrays, named.values(), strict=True))
    shapes = {array.shape[1:] for array in named.values()}
    if len(shapes) > 1:
        listed = " and ".join(str(shape) for shape in sorted(shapes))
        raise DataError(
            f"{next(iter(parts.values())).where}: images of the splits differ: {listed}"
        )
    return result


def _check_features(parts: dict[str, FoundSplit]) -> dict[str, np.ndarray | ImagePaths]:
    """float32, finite, all splits of one width."""
    result: dict[str, np.ndarray | ImagePaths] = {}
    widths = {}
    for split, part in parts.items():
        array = part.rows
        assert isinstance(array, np.ndarray)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.shape[1]:
            raise DataError(
                f"{part.where}: {split} features are {array.dtype} {array.shape}, not floats (N, d)"
            )
        check_finite(array, f"{part.where} ({split})")
        result[split] = np.ascontiguousarray(array, dtype=np.float32)
        widths[split] = array.shape[1]
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{split} {width}" for split, width in widths.items())
        raise DataError(f"{next(iter(parts.values())).where}: feature widths differ: {listed}")
    return result


def _labels(
    parts: dict[str, FoundSplit], names: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as class numbers, and the class names."""
    kinds = {part.labels.dtype.kind for part in parts.values()}
    where = next(iter(parts.values())).where
    if kinds <= {"U", "S"}:
        text = {split: part.labels.astype(str) for split, part in parts.items()}
        known = sorted({str(v) for values in text.values() for v in np.unique(values)})
        order = names or tuple(known)
        for name in known:
            if name not in order:
                raise DataError(
                    f"{where}: label {name!r} is not among the class names: "
                    f"{did_you_mean(name, order)}"
                )
        position = {name: index for index, name in enumerate(order)}
        coded = {
            split: np.array([position[str(v)] for v in values], dtype=np.int64)
            for split, values in text.items()
        }
        return coded, order
    if not kinds <= {"i", "u", "b"}:
        dtype = next(p.labels.dtype for p in parts.values() if p.labels.dtype.kind not in "iub")
        raise DataError(f"{where}: labels are {dtype}: save class numbers as integers, from 0")
    coded = {split: part.labels.astype(np.int64) for split, part in parts.items()}
    low = min(int(values.min()) for values in coded.values())
    high = max(int(values.max()) for values in coded.values())
    if low < 0:
        raise DataError(f"{where}: labels start at {low}: number them from 0, drop unlabelled rows")
    if names is None:
        if high > 1_000_000:
            raise DataError(f"{where}: a label is {high}: number the classes from 0")
        names = tuple(str(index) for index in range(high + 1))
    if high >= len(names):
        raise DataError(
            f"{where}: a label is {high}, but there are {len(names)} class names (0 to "
            f"{len(names) - 1})"
        )
    return coded, names


def _check_names(names: tuple[str, ...], where: str) -> None:
    """Class names are distinct and not empty."""
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{where}: class name {twice[0]!r} occurs {names.count(twice[0])} times")
    blank = next((index for index, name in enumerate(names) if not name.strip()), None)
    if blank is not None:
        raise DataError(f"{where}: the name of class {blank} is empty")


def _codes(
    parts: dict[str, FoundSplit], column: str, where: str, keep_integers: bool
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """A column of ids as int64 codes over all splits, and their names in code order."""
    found = {s: getattr(p, column) for s, p in parts.items() if getattr(p, column) is not None}
    for split, values in found.items():
        if values.shape != parts[split].labels.shape:
            raise DataError(
                f"{where}: {column} have shape {values.shape} for {len(parts[split].labels)} "
                f"{split} labels"
            )
        if values.dtype.kind not in "iubUS":
            raise DataError(f"{where}: {column} are {values.dtype}: give integers or names")
    if not found:
        return {}, ()
    if all(values.dtype.kind in "iub" for values in found.values()) and keep_integers:
        return {split: values.astype(np.int64) for split, values in found.items()}, ()
    text = {s: v.astype(str) if v.dtype.kind in "US" else v for s, v in found.items()}
    known = np.unique(np.concatenate(list(text.values())))
    coded: dict[str, np.ndarray | None] = {
        split: np.searchsorted(known, values).astype(np.int64) for split, values in text.items()
    }
    return coded, tuple(str(name) for name in known)


def _attach_text(
    table: CheckedData, source: Source, only_text_classes: bool, notes: list[str]
) -> None:
    """Check text features, put them in label order, and leave out classes without one."""
    if source.text is None:
        if only_text_classes:
            raise ConfigError(f"only_text_classes is set, but {table.where} has no text features")
        return
    features, ids = source.text
    num_classes = len(table.classnames)
    where = f"{table.where}: text features"
    if features.ndim != 2 or features.dtype.kind != "f" or ids.shape != features.shape[:1]:
        raise DataError(f"{where} are {features.dtype} {features.shape} for {ids.shape} classes")
    check_finite(features, where)
    ids = ids.astype(np.int64) if ids.dtype.kind in "iu" else np.full(1, -1)
    if len(np.unique(ids)) != len(ids) or ids.min() < 0 or ids.max() >= num_classes:
        raise DataError(f"{where}: class ids must be distinct and from 0 to {num_classes - 1}")
    width = next(iter(table.splits.values())).rows
    if (
        source.are_features
        and isinstance(width, np.ndarray)
        and width.shape[1] != features.shape[1]
    ):
        raise DataError(f"{where} have width {features.shape[1]}, image features {width.shape[1]}")
    order = np.argsort(ids)
    if len(ids) < num_classes:
        if not only_text_classes:
            notes.append(
                f"text features ignored: {len(ids)} of {num_classes} classes have one "
                "(only_text_classes: true keeps these)"
            )
            return
        _restrict(table, ids[order])
        notes.append(f"{len(ids)} of {num_classes} classes kept: those with a text feature")
    table.text = np.ascontiguousarray(features[order], dtype=np.float32)


def _restrict(table: CheckedData, keep: np.ndarray) -> None:
    """Leave out the rows of other classes, number those kept (ascending) from 0."""
    renumber = np.full(len(table.classnames), -1, dtype=np.int64)
    renumber[keep] = np.arange(len(keep))
    for split, rows in table.splits.items():
        kept = rows.take(np.flatnonzero(renumber[rows.labels] >= 0))
        labels = renumber[kept.labels]
        table.splits[split] = CheckedRows(kept.rows, labels, kept.clients, kept.domains)
    table.classnames = tuple(table.classnames[i] for i in keep)
