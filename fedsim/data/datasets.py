"""Data sets: images or precomputed features, in train, val and test splits, checked on loading.

What is loaded is the same whatever the experiment's seed, except for the draws `shots`,
`max_train_samples` and `resplit`. The official test split is never mixed into train.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config.problems import section_of
from fedsim.config.sections import DataConfig
from fedsim.data.carving import carve_missing, choose_train, draw_shots, shorten, split_by_domain
from fedsim.data.checks import check_source
from fedsim.data.containers import DEFAULT_TEMPLATES, Dataset, fingerprint
from fedsim.data.readers.coop import COOP_SETS, is_coop, read_coop
from fedsim.data.readers.folders import read_folder
from fedsim.data.readers.huggingface import read_huggingface
from fedsim.data.readers.npz import read_npz
from fedsim.data.readers.source import COLUMNS, SPLITS, FoundSplit, Source, missing_path
from fedsim.data.splits import carve
from fedsim.errors import ConfigError, DataError, did_you_mean
from fedsim.seeding import derive


def load_dataset(name: str, *, seed: int = 0, **options: Any) -> Dataset:
    """Load and check a data set.

    Args:
        name: `digits` (1,797 images of 8x8, built in); one of the eleven sets of
            `fedsim.data.readers.coop`, such as `caltech101`; the path of a `.npz` file (keys: see
            `fedsim.data.readers.npz`) or of a folder of images (layouts: see
            `fedsim.data.readers.folders`); `hf:NAME` or `hf:NAME:CONFIG`. With `path`, any other
            name.
        seed: Of the draws `shots`, `max_train_samples` and `resplit`; nothing else depends on it.
        options: The other settings of the section `data` (`fedsim.config.sections.DataConfig`),
            such as `shots=16`.

    Raises:
        ConfigError: An option is unknown, outside its range or does not apply.
        DataError: The data is missing or broken; the message says where and what to do.

    >>> data = load_dataset("digits")
    >>> len(data.train), len(data.val), len(data.test), data.classnames[3]
    (1076, 362, 359, 'three')
    >>> load_dataset("digit")
    Traceback (most recent call last):
    fedsim.errors.DataError: digit: no such file or folder, nor a built-in: did you mean 'digits'?
    """
    return read_dataset(section_of(DataConfig, name=name, **options), seed)


def read_dataset(data: DataConfig, seed: int) -> Dataset:
    """`load_dataset` for the section `data`. Draws follow `seed`, a run's `partition_seed`."""
    source = choose_train(_source(data, seed), data)
    checked = check_source(source, data)
    if data.test_domain is not None:
        split_by_domain(checked, data.test_domain)
    carve_missing(checked, data, source.carve_seed)
    if data.shots is not None:
        draw_shots(checked, data.shots, source, seed)
    shorten(checked, "train", data.max_train_samples, seed)
    shorten(checked, "test", data.max_test_samples, seed=0)  # the same test for every seed
    splits, whole = checked.splits, hashlib.blake2b(digest_size=16)
    for part in (*(splits[split].fingerprint for split in SPLITS), *checked.classnames):
        whole.update(part.encode() + b"\x1f")
    if checked.text is not None:
        whole.update(fingerprint(checked.text).encode())
    return Dataset(
        name=data.name,
        classnames=checked.classnames,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        text_features=checked.text,
        fingerprint=whole.hexdigest(),
        templates=data.templates or source.templates or DEFAULT_TEMPLATES,
        domain_names=checked.domain_names,
        notes=tuple(checked.notes),
    )


def _source(data: DataConfig, seed: int) -> Source:
    """Find out what the name and the path are, and read that."""
    name, path = data.name, None if data.path is None else Path(data.path)
    given = [f"{c}_column" for c in COLUMNS if getattr(data, f"{c}_column") is not None]
    is_digits = name == "digits" and path is None
    if data.resplit and not is_digits:
        raise ConfigError(
            f"resplit is for the built-in digits, whose splits are fedsim's own; {name} keeps "
            f"its test split apart"
        )
    if data.domains and (name.startswith("hf:") or name == "digits"):
        raise ConfigError("domains applies to image folders: set domain_column instead")
    if is_coop(name, path):
        if given or data.domains:
            raise ConfigError(f"{given[0] if given else 'domains'} does not apply to {name}")
        return read_coop(name, path, data.image_size)
    if name.startswith("hf:"):
        return read_huggingface(name.removeprefix("hf:"), path, data)
    if is_digits:
        if given:
            raise ConfigError(f"{given[0]} does not apply to digits")
        source, kind = _digits(seed if data.resplit else None), "digits"
    else:
        place = path or Path(name)
        if place.is_dir():
            if given:
                raise ConfigError(f"{given[0]} does not apply to a folder of images ({place})")
            return read_folder(place, data.domains, data.image_size)
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
        source, kind = read_npz(place, data), str(place)
    if data.image_size is not None:
        raise ConfigError(f"image_size applies to image folders and hf: data, not to {kind}")
    if data.domains:
        raise ConfigError(f"domains applies to image folders, not to {kind}: set domain_column")
    return source


def _digits(seed: int | None) -> Source:
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
