"""A file is there as a whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.storage.atomic import drafts_of, whole_file

KILLED = """
import os, sys
from pathlib import Path
from fedsim.storage.atomic import whole_file
with whole_file(Path(sys.argv[1])):
    os._exit(0)
"""


@pytest.mark.parametrize("durable", [False, True])
def test_replaces_what_was_there(tmp_path: Path, durable: bool):
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")
    with whole_file(path, durable) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_half_way_changes_nothing(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"aft")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_is_durable_before_it_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*args: object, name: str = name, real: object = real) -> None:
            done.append(name)
            real(*args)  # type: ignore[operator]

        monkeypatch.setattr(os, name, noted)
    with whole_file(tmp_path / "a", durable=True):
        pass
    with whole_file(tmp_path / "b"):
        pass
    assert done == ["fsync", "replace", "replace"]


def test_drafts_of_killed_writers_are_found_by_name(tmp_path: Path):
    killed = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "a.txt"])
    assert killed.wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == [f".a.txt.tmp{killed.pid}"]
    assert list(drafts_of(tmp_path)) == list(drafts_of(tmp_path, "a.*")) == [*tmp_path.iterdir()]
    assert list(drafts_of(tmp_path, "b.txt")) == []
