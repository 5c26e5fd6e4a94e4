"""`fedsim doctor`: one line per check, and what to do where all is not well."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from fedsim.cluster import doctor
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

    def ask(what: str, node_id: str, stop: object, task: Any, *given: Any) -> Any:
        (token,) = (tmp_path / "runs").iterdir()
        if node_id == "2" and spoil == "hide":
            token.unlink()
        if node_id == "2" and spoil == "protect":
            monkeypatch.setattr(os, "access", lambda path, mode: False)
        return task(*given)

    monkeypatch.setattr(doctor, "_ask", ask)
    nodes = [{"NodeID": number, "NodeManagerHostname": f"host{number}"} for number in "12"]
    # A study may have its output elsewhere, so this is no problem.
    assert doctor._show(doctor._shared(nodes, doctor.Stop())) is True
    text = capsys.readouterr().out
    first, second, *advice, _, _ = text.splitlines()
    assert first.split()[0] == "ok"
    assert f"node host1: output folder {tmp_path / 'runs'} is shared" in first
    assert second.split()[0] == ("warning" if spoil else "ok")
    words = {"hide": "does not show what is written here", "protect": "cannot be written"}
    assert words.get(spoil or "", "is shared") in second
    assert "node host2" in second
    assert bool(advice) is (spoil is not None)
    assert not advice or "output=URL" in advice[0]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this process a node that is healthy, but for some changes."""

    def make(
        versions: str = doctor.installed_versions(),
        free: float = 100 * GIB,
        shared: int = 8 * GIB,
        cache: Path = Path("cache"),
        open_files: int = 65536,
        ray_logs: int = 0,
        gpus: tuple[tuple[float, float], ...] = (),
    ) -> None:
        def disk_usage(path: Path) -> SimpleNamespace:
            return SimpleNamespace(free=free, total=shared)

        def look(name: str, _: str, store: int) -> list[doctor.Finding]:
            return real_look(name, versions, store)

        def ask(what: str, there: str, stop: object, task: Any, *given: Any, gpus: int = 0) -> Any:
            return task(*given)

        real_look, context = doctor.look, MagicMock()
        context().worker.node.get_session_dir_path.return_value = "ray/session"
        monkeypatch.setattr(doctor.ray, "get_runtime_context", context)
        monkeypatch.setattr(doctor, "_ask", ask)
        monkeypatch.setattr(doctor, "look", look)
        monkeypatch.setattr(doctor, "_size", lambda folder: ray_logs)
        monkeypatch.setattr(doctor, "cache_folder", lambda: cache)
        monkeypatch.setattr(doctor.shutil, "disk_usage", disk_usage)
        monkeypatch.setattr(doctor.resource, "getrlimit", lambda limit: (open_files, -1))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: gpus[number])

    return make


FREE = ((70 * GIB, 80 * GIB),)


@pytest.mark.parametrize(
    ("seen", "level", "words"),
    [
        ({"gpus": FREE}, "ok", "H, 70.0 GiB of 80.0 GiB free"),
        ({"versions": "python 3.11.1"}, "problem", "all nodes need the same"),
        ({"free": GIB // 4}, "problem", "make room"),
        ({"free": 2 * GIB}, "warning", "make room"),
        ({"cache": Path("/dev/null/cache")}, "problem", "set FEDSIM_CACHE"),
        ({"shared": GIB}, "warning", "--shm-size"),
        ({"open_files": 256}, "warning", "256 open files allowed"),
        ({"open_files": -1}, "ok", "any number of open files allowed"),
        ({"ray_logs": 40 * GIB}, "warning", "delete the old session_* folders"),
        ({"gpus": ()}, "problem", "Ray has 1 GPU(s), torch sees 0"),
        ({"gpus": ((4 * GIB, 80 * GIB),)}, "warning", "another process holds its memory"),
    ],
)
def test_what_a_node_finds_is_judged(
    seen: dict[str, Any],
    level: str,
    words: str,
    node: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    node(**{"gpus": FREE} | seen)
    resources = {"CPU": 4.0, "GPU": 1.0, "memory": GIB, "object_store_memory": 4 * GIB}
    here = {"NodeID": "1", "NodeManagerHostname": "host", "Resources": resources}
    assert doctor._show(doctor._node(here, doctor.Stop())) is (level != "problem")
    *lines, _, _ = capsys.readouterr().out.splitlines()
    (position,) = (i for i, line in enumerate(lines) if words in line)
    line = lines[position - lines[position].lstrip().startswith("->")]
    assert line.split()[0] == level
    others = {line.split()[0] for line in lines if not line.lstrip().startswith("->")}
    assert others <= {"ok", level}
