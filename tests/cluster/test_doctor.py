"""`fedsim doctor`: one line per check, and what to do where all is not well."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.cluster import doctor
from fedsim.cluster.inspection import Look, Versions, installed_versions
from tests.integration.studies import Command

GIB = 2**30


@pytest.mark.ray
def test_this_machine_is_fit(ray_cluster: None, capsys: pytest.CaptureFixture[str]):
    assert doctor.examine(None) is True
    text = capsys.readouterr().out
    for word in (
        "Python 3.",
        "packages within",
        "Ray starts",
        "4 CPU(s), 0 GPU(s)",
        "cache folder",
    ):
        assert word in text
    assert "embedded weights: tiny-clip loads, tiny-diffusion is there" in text
    assert "0 problem(s)" in text


@pytest.mark.ray
def test_a_broken_cache_folder_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file" / "cache"))
    command = Command("doctor")
    assert command.wait() == 1
    assert f"cache folder {tmp_path / 'file' / 'cache'}: Not a directory" in command.output
    assert "-> set FEDSIM_CACHE" in command.output
    assert "1 problem(s)" in command.output
    assert "Traceback" not in command.output
    command.wait_until_gone()


def test_an_address_where_nobody_is_says_so(monkeypatch: pytest.MonkeyPatch):
    command = Command("doctor", "--address", "127.0.0.1:1")
    assert command.wait() == 1
    assert "cannot reach the Ray cluster at 127.0.0.1:1" in command.output
    assert "is the address right" in command.output
    assert "Traceback" not in command.output


@pytest.mark.parametrize("spoil", ["hide", "protect", None])
def test_a_node_that_does_not_share_the_output_folder_is_warned_of(
    spoil: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Nodes answer one after the other: what is spoilt before the second, the first still saw."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    def ask(found: object, what: str, task: Callable[[], str], node_id: str, stop: object) -> str:
        (token,) = (tmp_path / "runs").iterdir()
        if node_id == "2" and spoil == "hide":
            token.unlink()
        if node_id == "2" and spoil == "protect":
            monkeypatch.setattr(os, "access", lambda path, mode: False)
        return task()

    monkeypatch.setattr(doctor, "_ask", ask)
    found = doctor._Findings()
    nodes = [{"NodeID": number, "NodeManagerHostname": f"host{number}"} for number in "12"]
    doctor._check_shared(found, nodes, doctor.Stop())
    text = capsys.readouterr().out
    first, second, *advice = text.splitlines()
    assert first.split()[0] == "ok"
    assert f"node host1: output folder {tmp_path / 'runs'} is shared" in first
    assert second.split()[0] == ("warning" if spoil else "ok")
    words = {"hide": "does not show what is written here", "protect": "cannot be written"}
    assert words.get(spoil or "", "is shared") in second
    assert "node host2" in second
    assert bool(advice) is (spoil is not None)
    assert not advice or "output=URL" in advice[0]
    assert found.sum_up() is True  # a study may have its output elsewhere
    assert list((tmp_path / "runs").iterdir()) == []


def look(**changes: object) -> Look:
    healthy = {
        "versions": installed_versions(),
        "cache": "cache",
        "cache_error": None,
        "cache_free": 100 * GIB,
        "shared_memory": 8 * GIB,
        "open_files": 65536,
        "ray_logs": 0,
    }
    return Look(**(healthy | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "gpus", "level", "words"),
    [
        ({}, [("H", 70 * GIB, 80 * GIB)], "ok", "H, 70.0 GiB of 80.0 GiB free"),
        ({"versions": Versions("3.11.1", "0", "1", "2")}, [], "problem", "all nodes need the same"),
        ({"cache_free": GIB // 4}, [], "problem", "make room"),
        ({"cache_free": 2 * GIB}, [], "warning", "make room"),
        ({"cache_error": "Read-only"}, [], "problem", "set FEDSIM_CACHE"),
        ({"shared_memory": GIB}, [], "warning", "--shm-size"),
        ({"open_files": 256}, [], "warning", "256 open files allowed"),
        ({"open_files": -1}, [], "ok", "any number of open files allowed"),
        ({"ray_logs": 40 * GIB}, [], "warning", "delete the old session_* folders"),
        ({}, [], "problem", "Ray has 1 GPU(s), torch sees 0"),
        ({}, [("H", 4 * GIB, 80 * GIB)], "warning", "another process holds its memory"),
    ],
)
def test_what_a_node_says_is_judged(
    seen: dict[str, object],
    gpus: list[tuple[str, int, int]],
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    answers = {doctor.look: look(**seen), doctor.look_at_gpus: gpus}
    monkeypatch.setattr(doctor, "_ask", lambda found, what, task, *rest: answers[task])
    resources = {"CPU": 4.0, "GPU": 1.0, "memory": GIB, "object_store_memory": 4 * GIB}
    node = {"NodeID": "1", "NodeManagerHostname": "host", "Resources": resources}
    found = doctor._Findings()
    doctor._check_node(found, node, doctor.Stop())
    lines = capsys.readouterr().out.splitlines()
    (position,) = (i for i, line in enumerate(lines) if words in line)
    line = lines[position - lines[position].lstrip().startswith("->")]
    assert line.split()[0] == level
    assert found.sum_up() is ("problem" not in {line.split()[0] for line in lines})
