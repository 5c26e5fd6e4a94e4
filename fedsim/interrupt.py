"""Ctrl+C that does not get lost.

Python raises an exception wherever the program happens to be, and libraries swallow it inside an
import, a callback or a destructor. So the request is noted, and looked at again before the first
run begins. From then on `fedsim.cluster.session.Stop` listens.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_CODE = 130

_requested = False
_words = ""


def watch() -> None:
    """Note every Ctrl+C from now on, beside raising `KeyboardInterrupt`; main thread only."""
    with suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raise the `KeyboardInterrupt` that got lost, once.

    Raises:
        KeyboardInterrupt: If there was one.
    """
    global _requested
    if _requested:
        _requested = False
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True
    signal.default_int_handler(number, frame)


@contextmanager
def last_words(text: str) -> Iterator[None]:
    """Text for the user if an interrupt ends this block, also by `quiet_exit`."""
    global _words
    _words = text
    try:
        yield
    except KeyboardInterrupt:
        _speak()
        raise
    finally:
        _words = ""


def _speak() -> None:
    """Say the last words, once."""
    global _words
    text, _words = _words, ""
    if text:
        sys.stderr.write(f"\n{text}\n")


def quiet_exit(code: int) -> None:
    """End the process at once, without the interpreter's slow teardown of Ray's threads."""
    try:
        if code == EXIT_CODE:
            _speak()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also if a stream is closed
        os._exit(code)
