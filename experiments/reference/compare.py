"""Are two runs of the reference studies the same, bit by bit?

    python experiments/reference/compare.py BEFORE AFTER

Both are folders that hold studies, such as `runs`. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedsim import load
from fedsim.results.tables.equality import equal_results


def compare(before: Path, after: Path) -> int:
    """Prints a line per study; returns how many differ."""
    differ = 0
    for folder in sorted(path for path in before.iterdir() if (path / "runs").is_dir()):
        other = after / folder.name
        if not (other / "runs").is_dir():
            print(f"{folder.name}: not in {after}")
            differ += 1
            continue
        first, second = load(folder), load(other)
        found = equal_results(first, second)
        differ += bool(found)
        said = "; ".join(found[:5]) if found else f"{len(first.runs)} runs are equal, bit by bit"
        print(f"{folder.name}: {said}")
    return differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    sys.exit(compare(given.before, given.after) > 0)
