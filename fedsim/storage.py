"""Where studies lie: a folder, or object storage with a copy on this machine.

    output: runs                a folder, on a cluster one that all nodes see
    output: s3://bucket/runs    object storage: everything fedsim does, it does in a copy

A study on object storage has a copy on every machine that works on it, in fedsim's cache. Whoever
is about to read pulls; who has written pushes: a run after each of its commits, tables before the
checkpoint, so that another machine can go on from there. Hidden files stay where they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from fedsim.errors import ResultsError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["Copy", "cache_folder", "local_folder", "url_of"]

_THREADS = 16
_SHARED = ("images", "nearest")
"""Folders with files that belong to several runs; these are written once and never changed."""

Stamp = tuple[int, int]
"""Size and time of change, in ns: a copy gets those of the original."""


def cache_folder() -> Path:
    """What this machine keeps between runs: `$FEDSIM_CACHE`, or the user's cache folder.

    On a cluster, point it at node-local disk for speed, or at shared storage so that features are
    computed once for all nodes.
    """
    if "FEDSIM_CACHE" in os.environ:
        return Path(os.environ["FEDSIM_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("fedsim")


def local_folder(folder: str | Path, reading: bool = False) -> Path:
    """Where a study lies on this machine: the folder itself, or the copy of a URL.

    Who only reads has a copy of his own: to bring that of a running study up to date would take
    from it what it has not pushed yet.

    >>> local_folder("runs/quickstart").as_posix()
    'runs/quickstart'
    >>> local_folder("s3://bucket/runs/quickstart").relative_to(cache_folder()).as_posix()
    'remote/s3%3A%2F%2Fbucket%2Fruns/quickstart'
    """
    text = str(folder)
    if "://" not in text:
        return Path(folder)
    output, _, study = text.rstrip("/").rpartition("/")
    return _root(reading) / quote(output, safe="") / study


def _root(reading: bool) -> Path:
    return cache_folder() / ("remote-read" if reading else "remote")


def url_of(folder: Path) -> str | None:
    """The URL that a folder is the copy of.

    >>> url_of(local_folder("s3://bucket/runs/quickstart"))
    's3://bucket/runs/quickstart'
    """
    if folder.parent.parent.resolve() not in (_root(False).resolve(), _root(True).resolve()):
        return None
    return f"{unquote(folder.parent.name)}/{folder.name}"


class Copy:
    """This machine's copy of a study on object storage; of a folder that is no copy, nothing to do.

    It remembers what the storage holds, so that a commit costs no listing: a run has one writer.

    Args:
        folder: The study's folder, from `local_folder`.
        run_id: Only this run's files, and those that runs share; by default the whole study's.
    """

    def __init__(self, folder: Path, run_id: str | None = None) -> None:
        self._folder, self._run_id, self._url = folder, run_id, url_of(folder)
        self._there: dict[str, Stamp] | None = None

    def pull(self) -> None:
        """Make the copy what the storage holds; what only the copy has is gone.

        Raises:
            ResultsError: The storage cannot be reached, or its URL is wrong.
        """
        if self._url is None:
            return
        with _storage(self._url) as storage:
            there = self._there = self._own(storage.stamps())
            here = self._here()

            def get(name: str) -> None:
                storage.download(name, self._folder / name, there[name])

            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(get, [name for name in there if here.get(name) != there[name]]))
        for name in here.keys() - there.keys():
            if self._run_id is None or not _is_shared(name):
                (self._folder / name).unlink(missing_ok=True)

    def push(self) -> None:
        """Bring to the storage what has changed here; of a run, checkpoints last.

        Without a run only what no run writes, such as the plan and the report: runs push their own.

        Raises:
            ResultsError: The storage cannot be reached or written.
        """
        if self._url is None:
            return
        with _storage(self._url) as storage:
            if self._there is None:
                self._there = self._own(storage.stamps())
            there, here = self._there, self._here()
            if self._run_id is None:
                here = {name: stamp for name, stamp in here.items() if "/" not in name}
            for name in sorted(here, key=_checkpoints_last):
                if there.get(name) != here[name]:
                    there[name] = storage.upload(self._folder / name, name)
                    _restamp(self._folder / name, here[name], there[name])
            if self._run_id is not None:
                for name in [n for n in there if n not in here and not _is_shared(n)]:
                    storage.delete(name)
                    del there[name]

    def probe(self) -> None:
        """Refuse now a storage that would refuse the first commit.

        Raises:
            ResultsError: It cannot be written.
        """
        if self._url is not None:
            with _storage(self._url) as storage:
                storage.probe()

    def _own(self, stamps: dict[str, Stamp]) -> dict[str, Stamp]:
        run = self._run_id
        return stamps if run is None else {k: v for k, v in stamps.items() if _of(k, run)}

    def _here(self) -> dict[str, Stamp]:
        """The copy's own visible files; those of thousands of other runs are not looked at."""
        found = {}
        for folder, inside, names in os.walk(self._folder):
            at = os.path.relpath(folder, self._folder)
            if at in _SHARED or at == "checkpoints":  # these have a folder for every run
                inside[:] = [n for n in inside if self._run_id in (None, n)]
            for name in names:
                path = os.path.normpath(os.path.join(at, name))
                if name.startswith(".") or (self._run_id and not _of(path, self._run_id)):
                    continue
                with suppress(FileNotFoundError):  # another run's, renamed meanwhile
                    stat = (self._folder / path).stat()
                    found[path] = stat.st_size, stat.st_mtime_ns
        return found


@dataclass(frozen=True)
class _Storage:
    """A study's objects on a file system, by their names relative to it."""

    fs: FileSystem
    root: str

    def stamps(self) -> dict[str, Stamp]:
        from pyarrow.fs import FileSelector, FileType

        found = self.fs.get_file_info(FileSelector(self.root, recursive=True, allow_not_found=True))
        return {
            os.path.relpath(info.path, self.root): (info.size, info.mtime_ns or 0)
            for info in found
            if info.type == FileType.File and not info.base_name.startswith(".")
        }

    def download(self, name: str, path: Path, stamp: Stamp) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.tmp{os.getpid()}")
        with self.fs.open_input_stream(f"{self.root}/{name}") as source, open(draft, "wb") as file:
            while chunk := source.read(2**20):
                file.write(chunk)
        os.utime(draft, ns=(stamp[1], stamp[1]))
        os.replace(draft, path)

    def upload(self, path: Path, name: str) -> Stamp:
        target = f"{self.root}/{name}"
        self.fs.create_dir(os.path.dirname(target), recursive=True)
        with open(path, "rb") as file, self.fs.open_output_stream(target) as sink:
            while chunk := file.read(2**20):
                sink.write(chunk)
        info = self.fs.get_file_info(target)
        return info.size, info.mtime_ns or 0

    def delete(self, name: str) -> None:
        self.fs.delete_file(f"{self.root}/{name}")

    def probe(self) -> None:
        target = f"{self.root}/.written-by-fedsim-{os.getpid()}"
        self.fs.create_dir(self.root, recursive=True)
        with self.fs.open_output_stream(target) as sink:
            sink.write(b"-")
        self.fs.delete_file(target)


@contextmanager
def _storage(url: str) -> Iterator[_Storage]:
    """The objects behind a URL; whatever the file system raises is one clear error."""
    try:
        yield _Storage(*_file_system(url))
    except (OSError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ResultsError(
            f"{url} cannot be reached or written ({type(error).__name__}: {first}); check the URL, "
            f"this machine's credentials and the network, or choose another place: output=FOLDER"
        ) from error


def _file_system(url: str) -> tuple[FileSystem, str]:
    """Arrow's own file system for a URL, or one of fsspec's.

    Raises:
        ResultsError: Nobody knows its protocol.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        return FileSystem.from_uri(url)
    except pa.ArrowInvalid:
        protocol = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        found, path = url_to_fs(url)
        return PyFileSystem(FSSpecHandler(found)), path
    except (ImportError, ValueError) as error:
        raise ResultsError(
            f"{url}: no file system for {protocol}:// ({error}); use s3://, gs://, abfs:// or "
            f"hdfs://, install the fsspec package that has it, or choose a folder: output=FOLDER"
        ) from error


def _of(name: str, run_id: str) -> bool:
    """Whether a file is a run's, or one that runs share."""
    parts = name.split("/")
    own = len(parts) > 1 and re.match(rf"{re.escape(run_id)}([.-]|$)", parts[1])
    return bool(own) or _is_shared(name)


def _is_shared(name: str) -> bool:
    folder, _, rest = name.partition("/")
    return folder in _SHARED and "/" not in rest


def _checkpoints_last(name: str) -> tuple[bool, str]:
    return name.startswith("checkpoints/"), name


def _restamp(path: Path, seen: Stamp, stamp: Stamp) -> None:
    """Give a file its original's time, unless it has been written again since it was looked at."""
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) == seen:
        os.utime(path, ns=(stamp[1], stamp[1]))
