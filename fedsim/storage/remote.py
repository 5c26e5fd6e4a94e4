"""Where studies lie: a folder, or object storage with a copy on this machine.

    output: runs                a folder, on a cluster one that all nodes see
    output: s3://bucket/runs    object storage: fedsim works on a copy and keeps both equal

A study on object storage has a copy on every machine that works on it, in fedsim's cache. A
process pulls before it reads and pushes after it has written: a run after each of its commits,
tables before the checkpoint, so that another machine can go on from there. Hidden files are not
copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from fedsim.errors import ResultsError
from fedsim.storage.atomic import whole_file

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_THREADS, _ATTEMPTS = 16, 5
_CHECKPOINTS = "checkpoints"
_SHARED = ("images", "nearest")
"""Folders with files that belong to several runs; these are written once and never changed."""

Stamp = tuple[int, int]
"""Size and time of change, in ns: a copy gets those of the original."""


def cache_folder() -> Path:
    """The folder that outlives runs on this machine: `$FEDSIM_CACHE`, or the user's cache folder.

    On a cluster, point it at node-local disk for speed, or at shared storage so that features are
    computed once for all nodes.
    """
    if "FEDSIM_CACHE" in os.environ:
        return Path(os.environ["FEDSIM_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("fedsim")


def local_folder(folder: str | Path, reading: bool = False) -> Path:
    """Where a study lies on this machine: the folder itself, or the copy of a URL.

    A reader works on its own copy. Updating the copy of a running study would delete the files that
    the study has not pushed yet.

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
    """This machine's copy of a study on object storage; for any other folder it does nothing.

    The copy of a run, which has one writer, holds all its files and those that runs share. The copy
    of a whole study holds no checkpoints: only a process that continues a run needs them.

    Args:
        folder: The study's folder, from `local_folder`.
        run_id: Only this run's files; by default the whole study's.
    """

    def __init__(self, folder: Path, run_id: str | None = None) -> None:
        self._folder, self._run_id, self._url = folder, run_id, url_of(folder)
        self._there: set[str] = set()  # known to be in the storage
        self._same: dict[str, Stamp] = {}  # files here that are as they are there

    def pull(self) -> None:
        """Make the copy equal to the storage; files that only the copy has are deleted.

        Raises:
            ResultsError: The storage cannot be reached, or its URL is wrong.
        """
        if self._url is None:
            return
        with _storage(self._url) as storage:
            there = self._downloaded(storage)
        here = self._here()
        for name in here.keys() - there:
            if self._run_id is None or not _is_shared(name):
                (self._folder / name).unlink(missing_ok=True)
        self._there, self._same = there, {name: here[name] for name in there if name in here}

    def push(self) -> None:
        """Send files that have changed here to the storage.

        A run's tables go before its checkpoints, and files that a checkpoint names go before it, so
        the storage always holds a run that can be continued. Files deleted locally are
        deleted remotely, but only if they were pulled: others may belong to another machine.
        Without a run, only files that no run writes are sent, such as the plan and the report.

        Raises:
            ResultsError: The storage cannot be reached or written.
        """
        if self._url is None:
            return
        with _storage(self._url) as storage:
            here = self._here()
            if self._run_id is None:
                self._send(storage, [name for name in here if "/" not in name], here)
                return
            for own in (_is_table, _is_checkpoint):
                self._send(storage, sorted(filter(own, here), key=_round_last), here)
                gone = [n for n in self._there - here.keys() if own(n) and not _is_shared(n)]
                for name in sorted(gone, key=_round_last, reverse=True):
                    storage.delete(name)
                    self._there.discard(name)

    def probe(self) -> None:
        """Refuse now a storage that would refuse the first commit.

        Raises:
            ResultsError: It cannot be written.
        """
        if self._url is not None:
            with _storage(self._url) as storage:
                storage.probe()

    def _downloaded(self, storage: _Storage) -> set[str]:
        """Download all wanted files and return their names. Files may be replaced meanwhile."""
        for attempt in range(_ATTEMPTS):
            there, here = storage.stamps(), self._here()
            wanted = {name: stamp for name, stamp in there.items() if self._wants(name)}

            def get(name: str, wanted: dict[str, Stamp | None] = wanted) -> None:
                storage.download(name, self._folder / name, wanted[name])

            changed = [n for n, stamp in wanted.items() if stamp is None or stamp != here.get(n)]
            try:
                with ThreadPoolExecutor(_THREADS) as pool:
                    list(pool.map(get, changed))
                break
            except FileNotFoundError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        return set(wanted)

    def _send(self, storage: _Storage, names: Iterable[str], here: dict[str, Stamp]) -> None:
        for name in names:
            if self._same.get(name) == here[name] or (_is_shared(name) and name in self._there):
                continue
            path, stamp = self._folder / name, storage.upload(self._folder / name, name)
            self._there.add(name)
            self._same[name] = _restamped(path, here[name], stamp)

    def _wants(self, name: str) -> bool:
        return _of(name, self._run_id) if self._run_id else not _is_checkpoint(name)

    def _here(self) -> dict[str, Stamp]:
        """The copy's own visible files; files of thousands of other runs are not looked at."""
        found = {}
        for folder, inside, names in os.walk(self._folder):
            at = os.path.relpath(folder, self._folder)
            if at in (*_SHARED, _CHECKPOINTS):  # these have a folder for every run
                inside[:] = [n for n in inside if self._wants(f"{at}/{n}/-")]
            for name in names:
                path = os.path.normpath(os.path.join(at, name))
                if name.startswith(".") or not self._wants(path):
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

    def stamps(self) -> dict[str, Stamp | None]:
        """Stamps of all visible files; None where the storage does not know when a file changed."""
        from pyarrow.fs import FileSelector, FileType

        found = self.fs.get_file_info(FileSelector(self.root, recursive=True, allow_not_found=True))
        return {
            os.path.relpath(info.path, self.root): _stamp(info)
            for info in found
            if info.type == FileType.File and not info.base_name.startswith(".")
        }

    def download(self, name: str, path: Path, stamp: Stamp | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.fs.open_input_stream(f"{self.root}/{name}") as source, whole_file(path) as file:
            while chunk := source.read(2**20):
                file.write(chunk)
            if stamp is not None:
                file.flush()
                os.utime(file.fileno(), ns=(stamp[1], stamp[1]))

    def upload(self, path: Path, name: str) -> Stamp | None:
        target = f"{self.root}/{name}"
        self.fs.create_dir(os.path.dirname(target), recursive=True)
        with open(path, "rb") as file, self.fs.open_output_stream(target) as sink:
            while chunk := file.read(2**20):
                sink.write(chunk)
        return _stamp(self.fs.get_file_info(target))

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
            f"{url} cannot be read or written, or its copy in {cache_folder()} ({first}); check "
            f"URL, credentials, network and disk, or choose another place: output=FOLDER"
        ) from error


def _file_system(url: str) -> tuple[FileSystem, str]:
    """Arrow's own file system for a URL, or one of fsspec's.

    Raises:
        ResultsError: No file system has its protocol.
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


def _stamp(info: FileInfo) -> Stamp | None:
    return None if info.mtime_ns is None else (info.size, info.mtime_ns)


def _of(name: str, run_id: str) -> bool:
    """Whether a file belongs to a run, or is shared by runs."""
    parts = name.split("/")
    own = len(parts) > 1 and re.match(rf"{re.escape(run_id)}([.-]|$)", parts[1])
    return bool(own) or _is_shared(name)


def _is_shared(name: str) -> bool:
    folder, _, rest = name.partition("/")
    return folder in _SHARED and "/" not in rest


def _is_checkpoint(name: str) -> bool:
    return name.startswith(f"{_CHECKPOINTS}/")


def _is_table(name: str) -> bool:
    return not _is_checkpoint(name)


def _round_last(name: str) -> tuple[bool, str]:
    """A round's checkpoint is the commit point: after the client states that it names."""
    return "/round-" in name, name


def _restamped(path: Path, seen: Stamp, stamp: Stamp | None) -> Stamp:
    """Give a file its original's time, unless it was written again after `seen` was taken."""
    stat = path.stat()
    if stamp is None or (stat.st_size, stat.st_mtime_ns) != seen:
        return seen
    os.utime(path, ns=(stamp[1], stamp[1]))
    return stamp
