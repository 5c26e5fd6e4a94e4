"""From what a reader found to splits that can be trusted: one dtype, one scale, one label space."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.config.sections import DataConfig
from fedsim.data.containers import Split
from fedsim.data.images import ImagePaths, channels_last, check_finite, to_uint8
from fedsim.data.readers.source import Source
from fedsim.errors import ConfigError, DataError, did_you_mean


@dataclass(eq=False)
class CheckedData:
    """Checked splits in one label space. What is drawn or carved later changes them in place.

    Attributes:
        splits: By name (train, val, test), as far as the source has them.
        classnames: In label order.
        domain_names: Empty when the data has no domains.
        text: float32 (num_classes, dim), or None.
        where: What errors call the source.
        notes: What was decided so far.
    """

    splits: dict[str, Split]
    classnames: tuple[str, ...]
    domain_names: tuple[str, ...]
    where: str
    text: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def check_classes(self) -> None:
        """Refuse a single class, an empty split, and a class without training samples.

        Raises:
            DataError: One of these.
        """
        num_classes = len(self.classnames)
        if num_classes < 2:
            raise DataError(f"{self.where}: there is one class only: nothing to tell apart")
        for split in ("train", "test"):
            if not len(self.splits[split]):
                raise DataError(f"{self.where}: the {split} split is empty")
        sizes = np.bincount(self.splits["train"].labels, minlength=num_classes)
        empty = [f"{i} ({self.classnames[i]})" for i in np.flatnonzero(sizes == 0)]
        if empty:
            raise DataError(
                f"{self.where}: {len(empty)} of {num_classes} classes have no training sample, "
                f"e.g. {', '.join(empty[:5])}: remove them and number the labels from 0"
            )


def check_source(source: Source, data: DataConfig) -> CheckedData:
    """Check everything that a reader found.

    Args:
        source: From a reader.
        data: `classnames`, if the user names the classes, and `only_text_classes`.

    Raises:
        DataError: What is wrong, where, and what to do.
    """
    _check_shapes(source)
    images = {} if source.are_features else _images(source)
    features = _features(source) if source.are_features else {}
    labels, names = _labels(source, data.classnames or source.classnames)
    _check_names(names, source.where)
    clients, _ = _codes(source, "clients")
    domains, domain_names = _codes(source, "domains")
    splits = {
        s: Split(images.get(s), features.get(s), coded, clients.get(s), domains.get(s))
        for s, coded in labels.items()
    }
    checked = CheckedData(splits, names, domain_names, source.where, notes=[*source.notes])
    _attach_text(checked, source, data.only_text_classes)
    return checked


def _check_shapes(source: Source) -> None:
    """Labels are a column as long as the rows; neither is empty."""
    for split, part in source.parts.items():
        labels, rows = part.labels, part.rows
        if labels.ndim != 1:
            one_hot = "are they one-hot? Save labels.argmax(1)"
            hint = one_hot if labels.ndim == 2 else "they must be (N,)"
            raise DataError(f"{part.where}: {split} labels have shape {labels.shape}: {hint}")
        if isinstance(rows, np.ndarray) and rows.ndim == 0:
            raise DataError(f"{part.where}: {split} rows are a single number, not an array")
        if len(rows) != len(labels):
            raise DataError(
                f"{part.where}: {len(rows)} {split} rows but {len(labels)} labels: they must match"
            )
        if not len(labels):
            raise DataError(f"{part.where}: the {split} split is empty")


def _images(source: Source) -> dict[str, np.ndarray | ImagePaths]:
    """uint8, channels last, all splits of one size."""
    found: dict[str, np.ndarray | ImagePaths] = {}
    arrays: dict[str, np.ndarray] = {}
    for split, part in source.parts.items():
        if isinstance(part.rows, ImagePaths):
            found[split] = part.rows
        else:
            arrays[split] = channels_last(part.rows, f"{part.where} ({split})")
    named = to_uint8({f"{source.parts[s].where} ({s})": array for s, array in arrays.items()})
    shapes = {array.shape[1:] for array in named.values()}
    if len(shapes) > 1:
        listed = " and ".join(str(shape) for shape in sorted(shapes))
        raise DataError(f"{source.where}: images of the splits differ: {listed}")
    return found | dict(zip(arrays, named.values(), strict=True))


def _features(source: Source) -> dict[str, np.ndarray]:
    """float32, finite, all splits of one width."""
    found = {}
    for split, part in source.parts.items():
        rows = part.rows
        assert isinstance(rows, np.ndarray)
        if rows.ndim != 2 or rows.dtype.kind not in "fiu" or not rows.shape[1]:
            raise DataError(
                f"{part.where}: {split} features are {rows.dtype} {rows.shape}, not floats (N, d)"
            )
        check_finite(rows, f"{part.where} ({split})")
        found[split] = np.ascontiguousarray(rows, dtype=np.float32)
    if len({rows.shape[1] for rows in found.values()}) > 1:
        listed = ", ".join(f"{split} {rows.shape[1]}" for split, rows in found.items())
        raise DataError(f"{source.where}: feature widths differ: {listed}")
    return found


def _labels(
    source: Source, names: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as class numbers, and the class names."""
    where, labels = source.where, {split: part.labels for split, part in source.parts.items()}
    kinds = {values.dtype.kind for values in labels.values()}
    if kinds <= {"U", "S"}:
        text = {split: values.astype(str) for split, values in labels.items()}
        known = sorted({str(v) for values in text.values() for v in np.unique(values)})
        order = names or tuple(known)
        for name in known:
            if name not in order:
                hint = did_you_mean(name, order)
                raise DataError(f"{where}: label {name!r} is not among the class names: {hint}")
        position = {name: index for index, name in enumerate(order)}
        return {
            s: np.array([position[str(v)] for v in t], np.int64) for s, t in text.items()
        }, order
    if not kinds <= {"i", "u", "b"}:
        dtype = next(v.dtype for v in labels.values() if v.dtype.kind not in "iub")
        raise DataError(f"{where}: labels are {dtype}: save class numbers as integers, from 0")
    coded = {split: values.astype(np.int64) for split, values in labels.items()}
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


def _codes(source: Source, column: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """A column of ids as int64 codes over all splits, and their names in code order.

    Integers that name clients stay as they are; all others are replaced by positions.
    """
    parts = source.parts
    found = {s: getattr(p, column) for s, p in parts.items() if getattr(p, column) is not None}
    for split, values in found.items():
        if values.shape != parts[split].labels.shape:
            raise DataError(
                f"{source.where}: {column} have shape {values.shape} for "
                f"{len(parts[split].labels)} {split} labels"
            )
        if values.dtype.kind not in "iubUS":
            raise DataError(f"{source.where}: {column} are {values.dtype}: give integers or names")
    if column == "clients" and all(values.dtype.kind in "iub" for values in found.values()):
        return {split: values.astype(np.int64) for split, values in found.items()}, ()
    text = {s: v.astype(str) if v.dtype.kind in "US" else v for s, v in found.items()}
    known = np.unique(np.concatenate([*text.values()])) if text else ()
    coded = {s: np.searchsorted(known, values).astype(np.int64) for s, values in text.items()}
    return coded, tuple(map(str, known))


def _attach_text(checked: CheckedData, source: Source, only_text_classes: bool) -> None:
    """Check text features, put them in label order, and leave out classes without one."""
    if source.text is None:
        if only_text_classes:
            raise ConfigError(f"only_text_classes is set, but {source.where} has no text features")
        return
    features, ids = source.text
    num_classes, where = len(checked.classnames), f"{source.where}: text features"
    if features.ndim != 2 or features.dtype.kind != "f" or ids.shape != features.shape[:1]:
        raise DataError(f"{where} are {features.dtype} {features.shape} for {ids.shape} classes")
    check_finite(features, where)
    ids = ids.astype(np.int64) if ids.dtype.kind in "iu" else np.full(1, -1)
    if len(np.unique(ids)) != len(ids) or ids.min() < 0 or ids.max() >= num_classes:
        raise DataError(f"{where}: class ids must be distinct and from 0 to {num_classes - 1}")
    rows = next(iter(checked.splits.values())).features
    if rows is not None and rows.shape[1] != features.shape[1]:
        raise DataError(f"{where} have width {features.shape[1]}, image features {rows.shape[1]}")
    order = np.argsort(ids)
    if len(ids) < num_classes:
        if not only_text_classes:
            checked.notes.append(
                f"text features ignored: {len(ids)} of {num_classes} classes have one "
                "(only_text_classes: true keeps these)"
            )
            return
        _restrict(checked, ids[order])
        checked.notes.append(f"{len(ids)} of {num_classes} classes kept: those with a text feature")
    checked.text = np.ascontiguousarray(features[order], dtype=np.float32)


def _restrict(checked: CheckedData, keep: np.ndarray) -> None:
    """Leave out the rows of other classes, number those kept (ascending) from 0."""
    renumber = np.full(len(checked.classnames), -1, dtype=np.int64)
    renumber[keep] = np.arange(len(keep))
    for split, rows in checked.splits.items():
        kept = rows.take(renumber[rows.labels] >= 0)
        checked.splits[split] = replace(kept, labels=renumber[kept.labels])
    checked.classnames = tuple(checked.classnames[i] for i in keep)
