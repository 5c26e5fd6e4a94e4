"""Making the splits a source lacks, and the draws that shorten train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.data.checks import CheckedData, CheckedRows
from fedsim.data.containers import fingerprint
from fedsim.data.readers.source import Source
from fedsim.data.splits import carve, take_per_group
from fedsim.errors import ConfigError, DataError, did_you_mean
from fedsim.seeding import derive

__all__ = ["cap_val", "carve_missing", "choose_train", "draw_shots", "split_by_domain"]


def choose_train(source: Source, train_split: str, notes: list[str], name: str) -> Source:
    """Put the split to train on under `train`."""
    parts = dict(source.parts)
    if train_split not in parts:
        known = ", ".join(parts)
        hint = f"set train_split to {next((p for p in parts if p != 'test'), 'another source')}"
        raise DataError(f"{name} has no {train_split} split, only {known}: {hint}")
    if train_split == "test":
        raise ConfigError("train_split is test: the test split is never trained on")
    if train_split != "train":
        notes.append(f"train is the source's {train_split} split")
        parts["train"] = parts.pop(train_split)
    return replace(source, parts=parts)


def split_by_domain(table: CheckedData, test_domain: str, notes: list[str]) -> None:
    """Test on one domain, train on the others.

    Of data with a test split of its own, that split's samples of the domain are the test, so that
    they are the same images on which models that have seen the domain are tested.
    """
    if not table.domain_names:
        raise ConfigError(
            "test_domain is set, but the data has no domains: set domains or domain_column"
        )
    if test_domain not in table.domain_names:
        raise ConfigError(
            f"test_domain {test_domain!r}: {did_you_mean(test_domain, table.domain_names)}"
        )
    which = table.domain_names.index(test_domain)
    source = "test" if "test" in table.splits else "train"
    for split, rows in list(table.splits.items()):
        if rows.domains is None:
            raise ConfigError(
                f"test_domain is set, but the {split} split does not say its samples' domains"
            )
        held = rows.domains == which
        if split != "test":
            table.splits[split] = rows.take(np.flatnonzero(~held))
        if split == source:
            table.splits["test"] = rows.take(np.flatnonzero(held))
            notes.append(f"test: the {int(held.sum())} {split} samples of domain {test_domain}")


def carve_missing(
    table: CheckedData,
    test_fraction: float,
    val_fraction: float,
    notes: list[str],
    seed: str | None = None,
) -> None:
    """Make the splits that the source lacks out of train, always the same way.

    Args:
        table: Its `splits` are changed.
        test_fraction: Of each class.
        val_fraction: Of each class, after that.
        notes: What was carved is added here.
        seed: Names the carve; None = the hash of the training rows.
    """
    splits = table.splits
    if seed is None and not {"test", "val"} <= set(splits):
        seed = fingerprint(splits["train"].rows, splits["train"].labels)
    for split, fraction in (("test", test_fraction), ("val", val_fraction)):
        if split in splits:
            continue
        train = splits["train"]
        if fraction == 0:
            splits[split] = train.take(np.zeros(0, dtype=np.int64))
            continue
        groups = train.labels
        if train.domains is not None:
            groups = train.domains * len(table.classnames) + train.labels
        mask = carve(groups, fraction, derive(0, "carve", split, seed or ""))
        splits[split] = train.take(np.flatnonzero(mask))
        splits["train"] = train.take(np.flatnonzero(~mask))
        notes.append(f"{split}: {int(mask.sum())} of {len(mask)} training samples, carved by class")
    table.check_classes()


def draw_shots(
    train: CheckedRows, shots: int, names: tuple[str, ...], seed: int, notes: list[str]
) -> CheckedRows:
    """At most `shots` samples of each class of train."""
    short = [n for n, s in zip(names, np.bincount(train.labels), strict=True) if s < shots]
    if short:
        notes.append(f"fewer than {shots} training samples: {', '.join(short)}")
    chosen = take_per_group(train.labels, np.full(len(names), shots), seed)
    return train.take(np.flatnonzero(chosen))


def cap_val(
    val: CheckedRows, limit: int, num_classes: int, seed: int, notes: list[str]
) -> CheckedRows:
    """At most `limit` samples of each class of val."""
    chosen = take_per_group(val.labels, np.full(num_classes, limit), seed)
    notes.append(f"val: {int(chosen.sum())} of {len(chosen)} samples, {limit} per class at most")
    return val.take(np.flatnonzero(chosen))
