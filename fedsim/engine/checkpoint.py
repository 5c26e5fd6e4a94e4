"""Snapshots that survive a kill at any instant and, with object storage, the loss of the machine.

A checkpoint is one file per round under `<study>/checkpoints/<run_id>/`, written aside and renamed
when complete; the newest complete one is the commit point of the run. Files hold tensors and plain
values only and are read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fedsim.errors import CheckpointError
from fedsim.storage.atomic import drafts_of, whole_file
from fedsim.storage.remote import Copy

_KEPT = 2
_FORMAT = 2
_CLAIM_DEADLINE_S = 20.0


class CheckpointFolder:
    """The snapshots of one run; those of another run are refused."""

    def __init__(self, study_dir: Path, run_id: str) -> None:
        self.path = study_dir / "checkpoints" / run_id
        self.run_id = run_id
        self._copy = Copy(study_dir, run_id)
        self._lock = FileLock(self.path / ".lock")

    def claim(self) -> None:
        """Make this process the only writer of the run, until `release` or its death.

        A killed driver's actors live on for a few seconds; the next driver waits for them.

        Raises:
            CheckpointError: If another process holds the run and does not let go.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_CLAIM_DEADLINE_S)
        except Timeout as error:
            raise CheckpointError(
                f"run {self.run_id} is being computed by another process; "
                f"wait for it, or end it (lock: {self.path / '.lock'})"
            ) from error
        try:
            self._copy.pull()
        except BaseException:  # a copy that could not be read must not be overwritten
            self._lock.release()
            raise
        for draft in drafts_of(self.path):
            draft.unlink(missing_ok=True)

    @property
    def claimed(self) -> bool:
        """Whether this process is the run's writer."""
        return self._lock.is_locked

    def release(self) -> None:
        """Let other processes continue the run."""
        try:
            self._copy.push()  # the tables' last words
        finally:
            self._lock.release()

    def save(self, round: int, content: dict[str, Any]) -> None:
        """Commit the state after `round`; older snapshots than the last two are removed.

        Raises:
            CheckpointError: If a value could be written but not be read back.
        """
        whole = {"format": _FORMAT, "run_id": self.run_id, "round": round, **content}
        write_whole(self.path / f"round-{round:06d}.pt", whole)
        for old in self._files()[:-_KEPT]:
            old.unlink(missing_ok=True)
        self._copy.push()

    def latest(self) -> dict[str, Any] | None:
        """The newest committed state, or None before round 0 is committed.

        Raises:
            CheckpointError: If it cannot be read, or belongs to another run or format.
        """
        files = self._files()
        if not files:
            return None
        path = files[-1]
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"checkpoint {path} cannot be read ({type(error).__name__}); "
                f"delete it to resume from the one before"
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path} is no checkpoint; delete it to resume from the one before"
            )
        if content.get("run_id") != self.run_id:
            raise CheckpointError(
                f"checkpoint {path} belongs to run {content.get('run_id')!r}, not to "
                f"{self.run_id!r}; delete {self.path} to start that run anew"
            )
        if content.get("format") != _FORMAT:
            raise CheckpointError(
                f"checkpoint {path} was written by another version of fedsim (format "
                f"{content.get('format')}, this one writes {_FORMAT}): finish the run with that "
                f"version, or delete {self.path} to start it anew"
            )
        return content

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("round-*.pt"))


def write_whole(path: Path, content: dict[Any, Any]) -> None:
    """Write a file that is there as a whole or not at all.

    Raises:
        CheckpointError: If a value could be written but not be read back.
    """
    if foreign := next(_foreign(content), None):
        raise CheckpointError(
            f"a state may hold tensors, numbers, strings, dicts and lists, not {foreign}"
        )
    with whole_file(path, durable=True) as file:
        torch.save(content, file)


_PLAIN = (type(None), bool, int, float, str, bytes)


def _foreign(tree: Any, where: str = "") -> Iterator[str]:
    """Values that `weights_only` loading refuses, NumPy's numbers among them."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _foreign(key, f"a key of {where or 'the state'}")
            yield from _foreign(value, f"{where}.{key}".lstrip("."))
    elif isinstance(tree, list | tuple):
        for position, value in enumerate(tree):
            yield from _foreign(value, f"{where}[{position}]")
    elif not isinstance(tree, torch.Tensor) and type(tree) not in _PLAIN:
        yield f"{type(tree).__module__}.{type(tree).__name__} ({where})"
