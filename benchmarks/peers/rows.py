"""The repetitions so far, one JSON line each: a kill loses one of them, a new start goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append(path: Path, row: Row) -> None:
    """Add one row, on disk before this returns."""
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")  # the last line was cut short
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """All rows; a last line that a kill cut short is none."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def setting(root: Path, digests: Iterable[str], machine: Sequence[object]) -> str:
    """What repetitions must have in common to be compared, as a short hash.

    The workloads, the machine, fedsim's code, the runners' code and the peers' versions.
    """
    here = root / "benchmarks" / "peers"
    names = ("work.py", "networks.py", "methods.py", "flower_client.py", "requirements.txt")
    files = [*(root / "fedsim").rglob("*.py"), *here.glob("run_*.py"), *(here / n for n in names)]
    whole = hashlib.blake2b(repr([*digests, *machine]).encode(), digest_size=6)
    for file in sorted(files):
        whole.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()


def is_clean(row: Row, most_foreign: float) -> bool:
    """Whether a repetition counts: it ended well, at the right weights, and nearly undisturbed."""
    return "error" not in row and row["foreign"] <= most_foreign
