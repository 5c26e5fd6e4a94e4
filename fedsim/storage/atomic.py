"""Files that are there as a whole or not at all.

    with whole_file(path) as file:
        file.write(content)

The content lies beside the file under a hidden name and replaces it in one step at the end. A
writer that is killed leaves this draft; `drafts_of` finds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[BufferedRandom]:
    """A file to write, which replaces `path` when the block ends and is gone when it fails.

    Args:
        path: In a folder that exists.
        durable: Wait until the bytes are on the disk before anything is replaced.

    Raises:
        OSError: If it cannot be written; `path` is as it was.
    """
    draft = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with open(draft, "w+b") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def drafts_of(folder: Path, name: str = "*") -> Iterator[Path]:
    """Drafts that killed writers left of files by this name, which may be a pattern."""
    return folder.glob(f".{name}.tmp*")
