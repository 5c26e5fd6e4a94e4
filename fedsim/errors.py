"""Every error fedsim raises on purpose. `exit_code` is the exit code of the command line.

An interrupted command (Ctrl+C) exits with 130, as shells expect. Messages say what happened,
where, and what to do; the cause is chained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class FedsimError(Exception):
    """Base of every error that fedsim raises on purpose."""

    exit_code = 1


class ConfigError(FedsimError):
    """One or more configuration values are wrong. `problems` lists all of them.

    Args:
        problems: One message, or one message per wrong value: where, what, what to do.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            text = self.problems[0]
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            text = f"{len(self.problems)} problems in the configuration:\n{lines}"
        super().__init__(text)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class DataError(FedsimError):
    """A data set is missing, broken or has the wrong shape."""

    exit_code = 3


class PartitionError(DataError):
    """The split asked for cannot be made from this data."""


class ModelError(FedsimError):
    """Weights or a generator cannot be loaded."""

    exit_code = 4


class PlacementError(FedsimError):
    """The cluster cannot hold what was asked for; the message shows the arithmetic."""

    exit_code = 5


class ClientError(FedsimError):
    """One simulated client failed; `reason` includes the traceback."""

    exit_code = 6

    def __init__(self, client_id: int, round: int, node: str, reason: str) -> None:
        self.client_id, self.round, self.node, self.reason = client_id, round, node, reason
        super().__init__(f"client {client_id} failed in round {round} on {node}: {reason}")

    def __reduce__(self) -> tuple[type[ClientError], tuple[int, int, str, str]]:
        return type(self), (self.client_id, self.round, self.node, self.reason)


class QuorumError(FedsimError):
    """Too many clients of one round failed to go on."""

    exit_code = 6


class ResultsError(FedsimError):
    """A results folder is missing, broken, or in use."""

    exit_code = 7


class CheckpointError(ResultsError):
    """A checkpoint is missing, broken or belongs to another configuration."""


class ExecutionError(FedsimError):
    """An actor or a trial died, or a wait passed its deadline."""

    exit_code = 8


_MOST_NAMES = 20


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that ends an error message about an unknown name.

    >>> did_you_mean("dirichlet_labels", ["iid", "dirichlet_label"])
    "did you mean 'dirichlet_label'?"
    >>> did_you_mean("zzz", ["iid", "domain"])
    'known: domain, iid'
    """
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"known: {', '.join(names[:_MOST_NAMES])}{more}" if names else "none is known"
