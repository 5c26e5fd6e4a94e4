"""Digits seen in four ways: an archive with a domain for every image.

    python experiments/domain_digits/make_domains.py [OUT.npz]

Each of scikit-learn's 1,797 handwritten digits appears once, in one of four domains. Train, val
and test are those of fedsim's `digits`. Within a split and class, the images are dealt to the
domains in an order that depends on `SEED` alone, so that domains differ in looks and not in
labels; their sizes differ by a few images.
"""

import sys
from pathlib import Path

import numpy as np

from fedsim.data import load_dataset
from fedsim.data.splits import stable_order
from fedsim.seeding import derive

SEED = 0
OUT = "digit_domains.npz"
SPLITS = ("train", "val", "test")


def plain(images: np.ndarray) -> np.ndarray:
    """As recorded: white on black, (N, 8, 8), uint8."""
    return images


def inverted(images: np.ndarray) -> np.ndarray:
    """Black on white."""
    return 255 - images


def rotated(images: np.ndarray) -> np.ndarray:
    """A quarter turn to the left, as scanned sideways."""
    return np.rot90(images, axes=(1, 2))


def blurred(images: np.ndarray) -> np.ndarray:
    """Out of focus: the binomial filter (1, 2, 1) / 4 along both axes, borders repeated."""
    padded = np.pad(images.astype(np.int64), ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    both = rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]
    return ((both + 8) // 16).astype(np.uint8)


DOMAINS = {"plain": plain, "inverted": inverted, "rotated": rotated, "blurred": blurred}


def deal(labels: np.ndarray, split: str) -> np.ndarray:
    """Domain of each image of a split, as a number: even shares of every class."""
    domains = np.empty(len(labels), dtype=np.int64)
    order = stable_order(derive(SEED, "digit_domains", split), len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        domains[mine] = (np.arange(len(mine)) + label) % len(DOMAINS)
    return domains


def make() -> dict[str, np.ndarray]:
    """The archive's arrays: x (1797, 8, 8), y, domain, split, classnames."""
    digits = load_dataset("digits")
    columns: dict[str, list[np.ndarray]] = {"x": [], "y": [], "domain": [], "split": []}
    for split in SPLITS:
        part = getattr(digits, split)
        images, domains = part.load_images(), deal(part.labels, split)
        seen = np.stack([look(images) for look in DOMAINS.values()])
        columns["x"].append(seen[domains, np.arange(len(images))])
        columns["y"].append(part.labels)
        columns["domain"].append(np.array(list(DOMAINS))[domains])
        columns["split"].append(np.full(len(images), split))
    arrays = {name: np.concatenate(column) for name, column in columns.items()}
    return arrays | {"classnames": np.array(digits.classnames)}


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else OUT)
    arrays = make()
    np.savez_compressed(out, **arrays)
    names, counts = np.unique(arrays["domain"], return_counts=True)
    told = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
    print(f"{out}: {len(arrays['y'])} images ({told})")


if __name__ == "__main__":
    main()
