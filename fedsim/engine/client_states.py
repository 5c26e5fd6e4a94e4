"""What clients keep between rounds, on disk.

A round's new states are one file beside the run's checkpoints. It is mapped into memory, so that
the system may take the pages back. The files are a log: a later file replaces states of earlier
ones, and the checkpoint names the files that count. When most states in them are outdated, the next
round's file gets all states and stands alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedsim.engine.checkpoint import write_whole
from fedsim.errors import CheckpointError
from fedsim.methods.base import State
from fedsim.params import Params

_OUTDATED = 2
"""All states are written anew when the files hold this many times as many as there are clients."""


@dataclass(frozen=True)
class ClientState:
    """What one client keeps between its participations.

    Attributes:
        method: The method's own state of the client.
        steps: What each update step keeps of it, by the step's name.
    """

    method: State = field(default_factory=dict)
    steps: Mapping[str, Params] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.method or self.steps)


class ClientStates(Mapping[int, ClientState]):
    """Client id -> its state, in the run's checkpoint folder; empty states take no space."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._states: dict[int, ClientState] = {}
        self._new: dict[int, ClientState] = {}
        self._files: dict[int, int] = {}  # round -> states in its file
        self._before: tuple[int, ...] = ()

    def __getitem__(self, client: int) -> ClientState:
        return self._new[client] if client in self._new else self._states[client]

    def __iter__(self) -> Iterator[int]:
        return iter(self._states | self._new)

    def __len__(self) -> int:
        return len(self._states.keys() | self._new.keys())

    def update(self, states: Mapping[int, ClientState]) -> None:
        """Replace the states of some clients."""
        self._new |= states

    def commit(self, round: int) -> list[int]:
        """Write what is new.

        Files of neither this nor the previous commit are removed. So the checkpoint written after
        this call finds its files, and so does the one before it.

        Returns:
            The rounds whose files count, in order, for `restore`.
        """
        if self._new:
            stored = sum(self._files.values()) + len(self._new)
            if stored > _OUTDATED * len(self):
                self._new, self._files = {**self._states, **self._new}, {}
            trees = {c: {"method": s.method, "steps": dict(s.steps)} for c, s in self._new.items()}
            write_whole(self._path(round), trees)
            self._files[round] = len(self._new)
            self._states |= self._read(round)
            self._new = {}
        now = sorted(self._files)
        for path in self._folder.glob("states-*.pt"):
            if int(path.stem.removeprefix("states-")) not in {*now, *self._before}:
                path.unlink(missing_ok=True)
        self._before = tuple(now)
        return now

    def restore(self, rounds: list[int]) -> None:
        """Go back to a commit.

        Raises:
            CheckpointError: If a file is missing or damaged.
        """
        self._states, self._new, self._files = {}, {}, {}
        for round in rounds:
            found = self._read(round)
            self._states |= found
            self._files[round] = len(found)
        self._before = tuple(rounds)

    def _path(self, round: int) -> Path:
        return self._folder / f"states-{round:06d}.pt"

    def _read(self, round: int) -> dict[int, ClientState]:
        path = self._path(round)
        try:
            found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever a damaged file makes torch raise
            raise CheckpointError(
                f"{path}, which holds what clients kept, cannot be read ({type(error).__name__}); "
                f"delete the run's folder to start it anew"
            ) from error
        assert isinstance(found, dict)
        return {client: _of_tree(tree) for client, tree in found.items()}


_OLD_RESIDUAL = "wire residual"
"""The key of compression's residual in files written before update steps had names."""


def _of_tree(tree: dict[str, Any]) -> ClientState:
    """A client's state in a file; older files hold the method's state alone."""
    if tree.keys() == {"method", "steps"}:
        return ClientState(tree["method"], tree["steps"])
    method = {name: value for name, value in tree.items() if name != _OLD_RESIDUAL}
    residual = tree.get(_OLD_RESIDUAL)
    return ClientState(method, {} if residual is None else {"compression": residual})
