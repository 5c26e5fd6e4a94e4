"""Requests to stop: heard once, obeyed in time, and forced when they are not."""

import os
import signal
import threading
from pathlib import Path

import pytest

from fedsim.cluster.session import Stop
from fedsim.cluster.single_run import mark_ended
from fedsim.results.study import load
from fedsim.results.tables.writer import TableWriter


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """One that would end this process, if it did not count instead."""
    stop = Stop()
    monkeypatch.setattr(stop, "ended", threading.Event(), raising=False)
    monkeypatch.setattr(stop, "_end", stop.ended.set)
    monkeypatch.setattr(stop, "GRACE_S", 1000.0)
    return stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_that_loops_find(stop: Stop, number: signal.Signals):
    before, woken = signal.getsignal(number), threading.Event()
    stop.nudge = woken.set
    with stop.handled():
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
        assert woken.is_set()
        with pytest.raises(KeyboardInterrupt, match=number.name):
            stop.check()
        assert not stop.ended.is_set()
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once(stop: Stop):
    with stop.handled():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.ended.is_set()


def test_who_does_not_look_in_time_is_ended(stop: Stop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stop, "GRACE_S", 0.01)
    with stop.handled():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.ended.wait(30)


def test_what_is_left_to_do_is_done_before_the_end(monkeypatch: pytest.MonkeyPatch):
    done: list[object] = []
    monkeypatch.setattr("fedsim.cluster.session.quiet_exit", done.append)
    stop = Stop()
    stop.leave = lambda: done.append("left")
    stop._end()
    assert done == ["left", 130]


def test_off_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Stop().handled():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("status", "then"),
    [("running", "interrupted"), ("finished", "finished"), ("failed", "failed")],
)
def test_only_a_run_that_goes_on_is_interrupted(tmp_path: Path, status: str, then: str):
    mark_ended(tmp_path, "run", "interrupted")  # not begun: nothing is written
    assert list(tmp_path.iterdir()) == []
    writer = TableWriter(tmp_path, "run")
    writer.update_run(status=status, study="s", method="m", seed=0)
    writer.commit()
    mark_ended(tmp_path, "run", "interrupted")
    assert load(tmp_path).runs.status.tolist() == [then]
