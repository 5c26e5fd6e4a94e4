"""Arrays that are computed once per node and then shared read-only by every process on it.

An entry is a folder of `.npy` files named by the hash of its key. Readers map the files into
memory, so all actors of a node share one copy in the page cache; a lock lets the first process
compute while the others wait. Entries appear by one rename and never change. Arrays that take hours
are stored in parts on the way (`UnfinishedEntry`): a kill costs the part in flight.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from fedsim.errors import DataError
from fedsim.storage.atomic import whole_file
from fedsim.storage.remote import cache_folder

Arrays = dict[str, np.ndarray]

_FORMAT = 1
_CHECKSUM_BYTES = 16
_checksum = partial(hashlib.blake2b, digest_size=_CHECKSUM_BYTES)


def address(key: Mapping[str, Any]) -> str:
    """The name of an entry: a hash of everything its content depends on.

    >>> address({"a": 1}) == address({"a": 1}) != address({"a": 2})
    True
    """
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def is_stored(key: Mapping[str, Any]) -> bool:
    """Whether an entry exists already."""
    return (cache_folder() / address(key)).is_dir()


def shared_arrays(key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of an entry, computed by `make` if no process of this node has done so.

    Args:
        key: Everything the content depends on, as JSON values.
        make: Computes the arrays by name.

    Returns:
        Read-only, memory-mapped arrays.

    Raises:
        DataError: If the cache folder cannot be written.
    """
    folder = cache_folder() / address(key)
    if not folder.is_dir():
        lock = FileLock(f"{folder}.lock")
        with _blamed_on(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            if not folder.is_dir():
                arrays = make()  # its errors are not the cache's
                with _blamed_on(folder.parent):
                    _write(folder, key, arrays)
                UnfinishedEntry(key).remove()
        finally:
            lock.release()
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


@dataclass(frozen=True, eq=False)
class InputStep:
    """An entry, as a step towards a run's inputs. Nothing is computed before it is asked for.

    Attributes:
        key: Everything the arrays depend on, as JSON values. A step that reads another one's
            arrays has its address in here.
        make: Computes the arrays by name.

    >>> import numpy as np
    >>> plain = InputStep({"kind": "example", "format": 1}, lambda: {"x": np.arange(3)})
    >>> double = InputStep({"of": plain.address}, lambda: {"y": 2 * plain.arrays["x"]})
    >>> sorted(arrays_of([plain, double]))
    ['x', 'y']
    """

    key: dict[str, Any]
    make: Callable[[], Arrays]

    @cached_property
    def address(self) -> str:
        """The entry's name: a hash of its key."""
        return address(self.key)

    @cached_property
    def arrays(self) -> Arrays:
        """Read-only, memory-mapped arrays: from the node's store, or made now."""
        return shared_arrays(self.key, self.make)


def arrays_of(steps: Iterable[InputStep]) -> Arrays:
    """The arrays of all steps; a later step's replace those of the same name."""
    return {name: array for step in steps for name, array in step.arrays.items()}


class UnfinishedEntry:
    """The finished parts, by number, of an entry that is still being made.

    A part appears by one rename, beside the entry, and ends with a checksum: after a crash of the
    machine a file may have its name and not its bytes. Only `make` of `shared_arrays` reads and
    writes parts; they are removed once the entry is whole.

    Args:
        key: The entry's.
    """

    def __init__(self, key: Mapping[str, Any]) -> None:
        self._folder = cache_folder() / f".parts-{address(key)}"

    def read(self, number: int) -> np.ndarray | None:
        """A part, mapped into memory; None if it was never finished, or is damaged."""
        path = self._path(number)
        try:
            raw = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError):  # absent, or empty
            return None
        end = len(raw) - _CHECKSUM_BYTES
        if end < 0 or _checksum(raw[:end].data).digest() != raw[end:].tobytes():
            return None
        return np.load(path, mmap_mode="r")  # bytes after the array are ignored

    def kept(self, number: int, array: np.ndarray) -> np.ndarray:
        """Write a part; returns it mapped into memory, so that `array` itself can be freed.

        Raises:
            DataError: If the cache folder cannot be written.
        """
        with _blamed_on(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path(number)) as file:
                np.save(file, array, allow_pickle=False)
                file.seek(0)
                file.write(hashlib.file_digest(file, _checksum).digest())
        stored = self.read(number)
        return array if stored is None else stored

    def remove(self) -> None:
        """Forget all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}.npy"


@contextmanager
def _blamed_on(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to the cache {cache} ({error.strerror}); "
            f"set FEDSIM_CACHE to a folder with space that you may write to"
        ) from error


def _write(folder: Path, key: Mapping[str, Any], arrays: Arrays) -> None:
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        (draft / "key.json").write_text(json.dumps(key, indent=1, sort_keys=True, default=str))
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def file_identity(path: Path) -> list[Any]:
    """Identifies a file's or folder's content without reading it: names, sizes, times."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [
        (str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in files
    ]
    digest = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    return [str(path.resolve()), len(files), digest]
