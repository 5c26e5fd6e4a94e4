"""What is shown while runs go on, on a terminal and elsewhere."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedsim.cli.display import Display, output
from fedsim.config import Experiment
from fedsim.config.study_file import parse_study
from fedsim.methods import METHODS


def runs(count: int = 3) -> list[Experiment]:
    tree = {"study": "s", "methods": ["fedavg_head"], "seeds": list(range(count))}
    return parse_study(tree | {"train": {"rounds": 2}}).experiments(METHODS)


def told(round: int, accuracy: float = 0.5) -> dict[str, object]:
    return {"round": round, "accuracy": accuracy, "finished": round == 2}


def plain(text: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_elsewhere_a_single_run_tells_every_round():
    (run,) = runs(1)
    file = StringIO()
    with Display([run], console=Console(file=file)) as display:
        for round in range(3):
            display.hear(run.run_id, told(round, round / 4))
    lines = file.getvalue().splitlines()
    assert [line.split("round")[1].split() for line in lines] == [
        ["0", "accuracy", "0.0", "%"],
        ["1", "accuracy", "25.0", "%"],
        ["2", "accuracy", "50.0", "%"],
    ]
    assert "\x1b" not in file.getvalue()


def test_elsewhere_a_sweep_tells_every_end():
    first, second, third = runs()
    file = StringIO()
    with Display([first, second, third], done=2, console=Console(file=file, width=40)) as display:
        display.hear(first.run_id, told(1))
        display.hear(first.run_id, told(2))
        display.hear(second.run_id, {"error": "ValueError: [no]\nand a traceback"})
        display.hear(third.run_id, told(2))
    assert [line.partition("s  ")[2] or line for line in file.getvalue().splitlines()] == [
        "[3/5] fedavg_head | iid | seed 0  round 2  accuracy  50.0 %",
        "failed: fedavg_head | iid | seed 1: ValueError: [no]",
        "[5/5] fedavg_head | iid | seed 2  round 2  accuracy  50.0 %",
    ]
    assert display.failed == {second.run_id: "ValueError: [no]\nand a traceback"}


@pytest.mark.parametrize("width", [60, 120])
def test_on_a_terminal_there_are_bars(width: int):
    first, second, third = runs()
    file = StringIO()
    console = Console(file=file, force_terminal=True, width=width)
    with Display([first, second, third], console=console) as display:
        display.hear(first.run_id, told(0))
        display.hear(second.run_id, told(1))
        display._progress.refresh()
        shown = plain(file.getvalue())
        assert "runs" in shown
        assert "0/3" in shown
        assert "1/2" in shown
        display.hear(first.run_id, told(2))
        display.hear(second.run_id, {"error": "ValueError: no"})
        display._progress.refresh()
        assert "2/3" in plain(file.getvalue())
        visible = [task for task in display._progress.tasks if task.visible]
        assert len(visible) == 1  # those that ended are gone
        display.hear(third.run_id, told(2))
    text = plain(file.getvalue())
    assert text.count("failed: fedavg_head | iid | seed 1: ValueError: no") == 1
    assert "3/3" in text


def test_on_a_terminal_a_single_run_shows_its_rounds():
    (run,) = runs(1)
    file = StringIO()
    with Display([run], console=Console(file=file, force_terminal=True, width=120)) as display:
        display.hear(run.run_id, told(0))
        display.hear(run.run_id, told(1, 0.75))
        display._progress.refresh()
        display.hear(run.run_id, told(2))
    text = plain(file.getvalue())
    assert "fedavg_head | iid | seed 0" in text
    assert "accuracy  75.0 %" in text
    assert "runs" not in text


def test_on_a_terminal_encoding_has_a_bar_until_it_is_done():
    (run,) = runs(1)
    file = StringIO()
    with Display([run], console=Console(file=file, force_terminal=True, width=120)) as display:
        display.hear(run.run_id, {"encoded": 1024, "images": 5000})
        display._progress.refresh()
        assert "encoding images" in plain(file.getvalue())
        assert "1024/5000" in plain(file.getvalue())
        display.hear(run.run_id, {"encoded": 5000, "images": 5000})
        assert not any(task.visible for task in display._progress.tasks)
        display.hear(run.run_id, {"encoded": 70, "images": 70})  # found finished: nothing to show
        assert not any(task.visible for task in display._progress.tasks)


def test_elsewhere_encoding_tells_only_if_it_takes_long(monkeypatch: pytest.MonkeyPatch):
    (run,) = runs(1)
    file, clock = StringIO(), iter([0.0, 1.0, 9.0, 11.0, 12.0, 22.0])
    ticking = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("fedsim.cli.display.time", ticking)
    with Display([run], console=Console(file=file)) as display:
        for encoded in range(1000, 6000, 1000):
            display.hear(run.run_id, {"encoded": encoded, "images": 5000})
    assert [line.split() for line in file.getvalue().splitlines()] == [
        ["11.0", "s", "encoded", "3,000", "of", "5,000", "images"],
        ["22.0", "s", "encoded", "5,000", "of", "5,000", "images"],
    ]


def test_output_that_is_no_terminal_is_wide(capsys: pytest.CaptureFixture[str]):
    output().print("x " * 70)
    assert capsys.readouterr().out.count("\n") == 1
