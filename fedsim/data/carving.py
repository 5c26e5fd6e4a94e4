"""Making the splits that a source lacks, and the draws that shorten splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.config.sections import DataConfig
from fedsim.data.checks import CheckedData
from fedsim.data.containers import fingerprint
from fedsim.data.readers.source import Source
from fedsim.data.splits import carve, proportional_quota, take_per_group
from fedsim.errors import ConfigError, DataError, did_you_mean
from fedsim.seeding import derive


def choose_train(source: Source, data: DataConfig) -> Source:
    """Put the split to train on under `train`."""
    parts, split = dict(source.parts), data.train_split
    if split not in parts:
        hint = f"set train_split to {next((p for p in parts if p != 'test'), 'another source')}"
        raise DataError(f"{data.name} has no {split} split, only {', '.join(parts)}: {hint}")
    if split == "test":
        raise ConfigError("train_split is test: the test split is never trained on")
    if split == "train":
        return source
    parts["train"] = parts.pop(split)
    return replace(
        source, parts=parts, notes=[*source.notes, f"train is the source's {split} split"]
    )


def split_by_domain(checked: CheckedData, test_domain: str) -> None:
    """Test on one domain, train on the others.

    If the data has a test split, the test is that split's samples of the domain: models that have
    seen the domain are tested on the same images.
    """
    names = checked.domain_names
    if not names:
        raise ConfigError(
            "test_domain is set, but the data has no domains: set domains or domain_column"
        )
    if test_domain not in names:
        raise ConfigError(f"test_domain {test_domain!r}: {did_you_mean(test_domain, names)}")
    source = "test" if "test" in checked.splits else "train"
    for split, rows in list(checked.splits.items()):
        if rows.domains is None:
            raise ConfigError(
                f"test_domain is set, but the {split} split does not say its samples' domains"
            )
        held = rows.domains == names.index(test_domain)
        if split != "test":
            checked.splits[split] = rows.take(~held)
        if split == source:
            checked.splits["test"] = rows.take(held)
            told = f"test: the {int(held.sum())} {split} samples of domain {test_domain}"
            checked.notes.append(told)


def carve_missing(checked: CheckedData, data: DataConfig, seed: str | None) -> None:
    """Make the splits that the source lacks out of train, always the same way.

    Args:
        checked: Its `splits` are changed.
        data: `test_fraction` of each class becomes test, `val_fraction` of the rest val.
        seed: Names the carve; None = the hash of the training rows.
    """
    splits = checked.splits
    if seed is None and not {"test", "val"} <= set(splits):
        seed = fingerprint(splits["train"].rows, splits["train"].labels)
    for split, fraction in (("test", data.test_fraction), ("val", data.val_fraction)):
        if split in splits:
            continue
        train = splits["train"]
        if fraction == 0:
            splits[split] = train.take(np.zeros(0, dtype=np.int64))
            continue
        groups = train.labels
        if train.domains is not None:
            groups = train.domains * len(checked.classnames) + train.labels
        mask = carve(groups, fraction, derive(0, "carve", split, seed or ""))
        splits[split], splits["train"] = train.take(mask), train.take(~mask)
        told = f"{split}: {int(mask.sum())} of {len(mask)} training samples, carved by class"
        checked.notes.append(told)
    checked.check_classes()


def draw_shots(checked: CheckedData, shots: int, source: Source, seed: int) -> None:
    """At most `shots` samples of each class of train, and of val as many as the source allows."""
    train, val, names = checked.splits["train"], checked.splits["val"], checked.classnames
    if not source.few_shot:
        short = [n for n, s in zip(names, np.bincount(train.labels), strict=True) if s < shots]
        if short:
            checked.notes.append(f"fewer than {shots} training samples: {', '.join(short)}")
        quota = np.full(len(names), shots)
        drawn = take_per_group(train.labels, quota, derive(seed, "shots"))
        checked.splits["train"] = train.take(drawn)
    if source.max_val_shots is not None and len(val):
        limit = min(shots, source.max_val_shots)
        quota = np.full(len(names), limit)
        drawn = take_per_group(val.labels, quota, derive(seed, "shots", "val"))
        told = f"val: {int(drawn.sum())} of {len(drawn)} samples, {limit} per class at most"
        checked.notes.append(told)
        checked.splits["val"] = val.take(drawn)


def shorten(checked: CheckedData, split: str, limit: int | None, seed: int) -> None:
    """At most `limit` samples of a split; class shares are kept, and the order of the source."""
    rows, option = checked.splits[split], f"max_{split}_samples"
    if limit is None or limit >= len(rows):
        return
    if limit < len(checked.classnames):
        raise ConfigError(f"{option} is {limit}: fewer than the {len(checked.classnames)} classes")
    quota = proportional_quota(np.bincount(rows.labels), limit)
    checked.splits[split] = rows.take(take_per_group(rows.labels, quota, derive(seed, option)))
