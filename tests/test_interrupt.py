"""Ctrl+C that some library swallowed stops the command all the same."""

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedsim import interrupt
from fedsim.driver.launch import Launcher
from tests.helpers import experiment


@pytest.fixture
def watched() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.watch()
    yield
    signal.signal(signal.SIGINT, before)
    with suppress(KeyboardInterrupt):
        interrupt.check()


def swallow() -> None:
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("Ctrl+C raises at once, as ever")


def test_a_swallowed_interrupt_is_raised_again_once(watched: None):
    interrupt.check()
    swallow()
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()
    interrupt.check()


def test_nothing_is_started_after_it(watched: None, tmp_path: Path):
    swallow()
    config = experiment("digits", "zero_shot", engine__backend="local")
    with pytest.raises(KeyboardInterrupt), Launcher(tmp_path / "study") as launcher:
        launcher.run([config], lambda run_id, seen: None)
    assert not (tmp_path / "study").exists()


def test_a_handler_of_someone_else_is_left_alone():
    def mine(*_: object) -> None:
        """Somebody's own."""

    before = signal.signal(signal.SIGINT, mine)
    interrupt.watch()
    assert signal.getsignal(signal.SIGINT) is mine
    signal.signal(signal.SIGINT, before)


def test_other_threads_may_ask_for_it_too():
    failed: list[Exception] = []

    def ask() -> None:
        try:
            interrupt.watch()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert failed == []


def test_who_is_interrupted_hears_how_to_go_on_once(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(KeyboardInterrupt), interrupt.last_words("start it again"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "\nstart it again\n"
    with interrupt.last_words("start it again"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("code", "said"), [(130, "\nstart it again\n"), (1, "")])
def test_an_end_by_force_says_it_too(
    code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """That is what a second Ctrl+C is, and one that nobody heeded for too long."""
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with interrupt.last_words("start it again"):
        interrupt.quiet_exit(code)
    assert ended == [code]
    assert capsys.readouterr().err == said
