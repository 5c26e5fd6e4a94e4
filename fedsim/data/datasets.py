"""Data sets: images or precomputed features, in train, val and test splits, checked on loading.

What is loaded is the same whatever the experiment's seed, except for the draws named so (`shots`,
`max_train_samples`). The official test split is never mixed into train.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fedsim.data.carving import (
    cap_val,
    carve_missing,
    choose_train,
    draw_shots,
    split_by_domain,
)
from fedsim.data.checks import CheckedRows, tabulate
from fedsim.data.containers import DEFAULT_TEMPLATES, Dataset, Split, fingerprint
from fedsim.data.readers.coop import COOP_SETS, is_coop, read_coop
from fedsim.data.readers.folders import read_folder
from fedsim.data.readers.huggingface import read_huggingface
from fedsim.data.readers.npz import read_npz
from fedsim.data.readers.source import SPLITS, Columns, FoundSplit, Source, missing_path
from fedsim.data.splits import carve, proportional_quota, take_per_group
from fedsim.errors import ConfigError, DataError, did_you_mean
from fedsim.seeding import derive

__all__ = ["Dataset", "Split", "load_dataset"]


def load_dataset(
    name: str,
    *,
    path: str | Path | None = None,
    classnames: tuple[str, ...] | list[str] | None = None,
    templates: tuple[str, ...] | list[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
    domain_column: str | None = None,
    domains: bool = False,
    test_domain: str | None = None,
    image_size: int | None = None,
    train_split: str = "train",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    shots: int | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    only_text_classes: bool = False,
    resplit: bool = False,
    seed: int = 0,
) -> Dataset:
    """Load and check a data set.

    Args:
        name: `digits` (1,797 images of 8x8, built in); one of the eleven sets of
            `fedsim.data.readers.coop`, such as `caltech101`; the path of a `.npz` file (keys: see
            `fedsim.data.readers.npz`) or of a folder of images (layouts: see
            `fedsim.data.readers.folders`); `hf:NAME` or `hf:NAME:CONFIG`. With `path`, any other
            name.
        path: Where the data is, when `name` is not that; for `hf:`, a copy on disk. A `.npz` file
            is read as one whatever the name.
        classnames: Names in label order, instead of those in the data.
        templates: Prompt templates, each with one `{}`, instead of the data set's own.
        image_column: Key or column of images or features.
        label_column: Key or column of labels.
        client_column: Key or column of recorded clients.
        domain_column: Key or column of domains.
        domains: The folder is laid out `{domain}/{class}`.
        test_domain: Test on this domain, train and validate on the others. Of a source with a test
            split, that split's samples of the domain are the test.
        image_size: Side in pixels for images of folders and `hf:` (resize, centre crop); 224 for
            the eleven sets.
        train_split: Which split of the source to train on (`val` where it has no `train`).
        val_fraction: Share of train carved out as val where the source has none, in [0, 1).
        test_fraction: Share of train carved out as test where the source has none, in (0, 1).
        shots: Training samples per class, at most; the eleven sets then also have at most 4
            validation samples per class.
        max_train_samples: Training samples in all, at most; class shares are kept.
        max_test_samples: The same of test; which ones does not depend on the seed.
        only_text_classes: Leave out classes that have no text feature, and relabel.
        resplit: Draw train, val and test of `digits` with `seed`, for repeated splits. Other data
            has splits that are not ours to mix.
        seed: Of the draws `shots`, `max_train_samples` and `resplit`; nothing else depends on it.

    Raises:
        ConfigError: An option is outside its range or does not apply.
        DataError: The data is missing or broken; the message says where and what to do.

    >>> data = load_dataset("digits")
    >>> len(data.train), len(data.val), len(data.test), data.classnames[3]
    (1076, 362, 359, 'three')
    >>> load_dataset("digit")
    Traceback (most recent call last):
    fedsim.errors.DataError: digit: no such file or folder, nor a built-in: did you mean 'digits'?
    """
    counts = {
        "shots": shots,
        "max_train_samples": max_train_samples,
        "max_test_samples": max_test_samples,
        "image_size": image_size,
    }
    _check_options(val_fraction, test_fraction, counts, templates)
    columns = Columns(image_column, label_column, client_column, domain_column)
    source = _read(name, None if path is None else Path(path), columns, domains, image_size, shots)
    if resplit:
        if name != "digits" or path is not None:
            raise ConfigError(
                f"resplit is for the built-in digits, whose splits are fedsim's own; {name} keeps "
                f"its test split apart"
            )
        source = _digits(seed)
    notes = list(source.notes)
    source = choose_train(source, train_split, notes, name)
    table = tabulate(source, classnames, only_text_classes, notes)
    splits = table.splits
    if test_domain is not None:
        split_by_domain(table, test_domain, notes)
    carve_missing(table, test_fraction, val_fraction, notes, source.carve_seed)
    train = splits["train"]
    if shots is not None and not source.few_shot:
        train = draw_shots(train, shots, table.classnames, derive(seed, "shots"), notes)
    if shots is not None and source.max_val_shots is not None and len(splits["val"].labels):
        limit, seed_val = min(shots, source.max_val_shots), derive(seed, "shots", "val")
        splits["val"] = cap_val(splits["val"], limit, len(table.classnames), seed_val, notes)
    num_classes = len(table.classnames)
    splits["train"] = _at_most(train, max_train_samples, "max_train_samples", seed, num_classes)
    test, fixed = splits["test"], 0  # the same test for every seed
    splits["test"] = _at_most(test, max_test_samples, "max_test_samples", fixed, num_classes)
    made = {split: _split(splits[split], source.are_features) for split in SPLITS}
    whole = hashlib.blake2b(digest_size=16)
    for part in (*(made[split].fingerprint for split in SPLITS), *table.classnames):
        whole.update(part.encode() + b"\x1f")
    if table.text is not None:
        whole.update(fingerprint(table.text).encode())
    return Dataset(
        name=name,
        classnames=table.classnames,
        train=made["train"],
        val=made["val"],
        test=made["test"],
        text_features=table.text,
        fingerprint=whole.hexdigest(),
        templates=tuple(templates or source.templates or DEFAULT_TEMPLATES),
        domain_names=table.domain_names,
        notes=tuple(notes),
    )


def _at_most(
    rows: CheckedRows, limit: int | None, option: str, seed: int, num_classes: int
) -> CheckedRows:
    """A draw of so many samples that keeps class shares, in the order of the source."""
    if limit is None or limit >= len(rows.labels):
        return rows
    if limit < num_classes:
        raise ConfigError(f"{option} is {limit}: fewer than the {num_classes} classes")
    quota = proportional_quota(np.bincount(rows.labels), limit)
    return rows.take(np.flatnonzero(take_per_group(rows.labels, quota, derive(seed, option))))


def _read(
    name: str,
    path: Path | None,
    columns: Columns,
    domains: bool,
    image_size: int | None,
    shots: int | None,
) -> Source:
    """Find out what `name` and `path` are, and read that."""
    given = [f"{column}_column" for column, value in vars(columns).items() if value is not None]
    if domains and (name.startswith("hf:") or name == "digits"):
        raise ConfigError("domains applies to image folders: set domain_column instead")
    if is_coop(name, path):
        if given or domains:
            raise ConfigError(f"{given[0] if given else 'domains'} does not apply to {name}")
        return read_coop(name, path, image_size)
    if name.startswith("hf:"):
        return read_huggingface(name.removeprefix("hf:"), path, columns, image_size)
    if name == "digits" and path is None:
        if given:
            raise ConfigError(f"{given[0]} does not apply to digits")
        source, kind = _digits(), "digits"
    else:
        place = path or Path(name)
        if place.is_dir():
            if given:
                raise ConfigError(f"{given[0]} does not apply to a folder of images ({place})")
            return read_folder(place, domains, image_size)
        if place.suffix != ".npz":
            if place.exists():
                raise DataError(f"{place}: not a .npz file or a folder of images")
            if path is None and place.parent == Path("."):
                hint = did_you_mean(name, ["digits", *COOP_SETS])
                raise DataError(
                    f"{name}: no such file or folder, nor a built-in: "
                    + (hint if hint.startswith("did") else "use digits, a path, or hf:NAME")
                )
            raise missing_path(place)
        source, kind = read_npz(place, columns, shots), str(place)
    if image_size is not None:
        raise ConfigError(f"image_size applies to image folders and hf: data, not to {kind}")
    if domains:
        raise ConfigError(f"domains applies to image folders, not to {kind}: set domain_column")
    return source


def _digits(seed: int | None = None) -> Source:
    """scikit-learn's 8x8 digits, split 60/20/20 by class, the same everywhere and always.

    With a seed, another split of the same shares.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.floor(bunch.images * (255 / 16) + 0.5).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    names = np.full(len(labels), "train", dtype="U5")
    key = (0, "digits") if seed is None else (seed, "digits", "resplit")
    names[carve(labels, 0.2, derive(*key, "test"))] = "test"
    rest = np.flatnonzero(names == "train")
    names[rest[carve(labels[rest], 0.25, derive(*key, "val"))]] = "val"
    parts = {s: FoundSplit(images[names == s], labels[names == s], "digits") for s in SPLITS}
    words = "zero one two three four five six seven eight nine"
    return Source(parts=parts, classnames=tuple(words.split()))


def _split(rows: CheckedRows, are_features: bool) -> Split:
    """The public form of checked rows."""
    features = rows.rows if are_features and isinstance(rows.rows, np.ndarray) else None
    images = None if are_features else rows.rows
    return Split(images, features, rows.labels, rows.clients, rows.domains)


def _check_options(
    val_fraction: float,
    test_fraction: float,
    counts: dict[str, int | None],
    templates: tuple[str, ...] | list[str] | None,
) -> None:
    """Refuse values outside their range, all at once."""
    problems = []
    if not 0 <= val_fraction < 1:
        problems.append(f"val_fraction is {val_fraction}: choose a share in [0, 1)")
    if not 0 < test_fraction < 1:
        problems.append(f"test_fraction is {test_fraction}: choose a share between 0 and 1")
    for option, value in counts.items():
        if value is not None and value < 1:
            problems.append(f"{option} is {value}: it must be 1 or more")
    for template in templates or ():
        if template.count("{}") != 1:
            problems.append(f"template {template!r} needs exactly one {{}} for the class name")
    if problems:
        raise ConfigError(problems)
