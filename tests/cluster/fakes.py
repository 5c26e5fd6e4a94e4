"""Ray replaced by a few lines that finish calls in an order of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedsim.seeding import numpy_rng


class FakeRay:
    """Calls are finished when somebody waits for them, in a random order.

    Attributes:
        held: Whether a call is never finished; who waits for nothing else waits in vain.
        killed: Actors, in order.
    """

    def __init__(self) -> None:
        self._rng = numpy_rng(0, "completion")
        self._done: list[Any] = []
        self.held: Callable[[Any], bool] = lambda future: False
        self.killed: list[Any] = []

    def put(self, value: Any) -> Any:
        return value

    def wait(
        self, futures: Sequence[Any], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Any], list[Any]]:
        open_ = [future for future in futures if not self.held(future)]
        if timeout != 0 and open_ and not any(f in self._done for f in futures):
            self._done.append(open_[int(self._rng.integers(len(open_)))])
        done = [f for f in futures if f in self._done][:num_returns]
        return done, [f for f in futures if f not in done]

    def get(self, future: Any) -> Any:
        return future()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class Call:
    """What `actor.method.remote(...)` returns."""

    def __init__(self, method: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.method, self.args = method, args

    def __call__(self) -> Any:
        return self.method(*self.args)


class Remote:
    """`actor.method`."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *args: Any) -> Call:
        return Call(self._method, args)
