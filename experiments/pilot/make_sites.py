"""Two sites that record different digits, seen differently, and not equally many.

    python experiments/pilot/make_sites.py [DOMAINS.npz] [OUT.npz]

Reads the archive of `experiments/domain_digits/make_domains.py` and adds who recorded each image.
An image belongs to `site_a` with odds that are the product of two numbers, one for its digit and
one for its domain; `site_b` gets the rest, and only `KEPT` of it is kept for training. The test
split stays whole: it stands for the patients, customers or machines of both sites together.
"""

import sys
from pathlib import Path

import numpy as np

from fedsim.seeding import numpy_rng

SEED = 0
DOMAINS, OUT = "digit_domains.npz", "pilot_sites.npz"
DIGIT_ODDS = {digit: 12.0 if digit < 4 else 1.0 if digit < 6 else 1 / 12 for digit in range(10)}
DOMAIN_ODDS = {"plain": 6.0, "blurred": 6.0, "inverted": 1 / 6, "rotated": 1 / 6}
KEPT = 0.5


def make(source: Path) -> dict[str, np.ndarray]:
    """The arrays of the source that are kept, and `client`: `site_a` or `site_b`."""
    with np.load(source) as archive:
        arrays = {name: archive[name] for name in archive.files}
    odds = np.array([DIGIT_ODDS[digit] for digit in arrays["y"].tolist()])
    odds *= [DOMAIN_ODDS[domain] for domain in arrays["domain"].tolist()]
    rng = numpy_rng(SEED, "pilot_sites")
    at_a = rng.random(len(odds)) < odds / (1 + odds)
    kept = at_a | (arrays["split"] == "test") | (rng.random(len(odds)) < KEPT)
    arrays["client"] = np.where(at_a, "site_a", "site_b")
    return {name: rows if name == "classnames" else rows[kept] for name, rows in arrays.items()}


def main() -> None:
    given = sys.argv[1:3]
    source, out = map(Path, given + [DOMAINS, OUT][len(given) :])
    arrays = make(source)
    np.savez_compressed(out, **arrays)
    train = arrays["client"][arrays["split"] == "train"]
    names, counts = np.unique(train, return_counts=True)
    told = ", ".join(f"{count} at {name}" for name, count in zip(names, counts, strict=True))
    print(f"{out}: {len(train)} training images ({told})")


if __name__ == "__main__":
    main()
