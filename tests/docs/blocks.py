"""The code blocks of the documentation: finding them, checking them, running them.

An HTML comment on the line before a block says how it is tested:

    <!-- test: skip (needs a GPU) -->       not run, and why
    <!-- test: args train.rounds=1 -->      added to every fedsim command that takes settings
    <!-- test: ray -->                      run through Ray, in processes of its own
    <!-- file: tour.yaml -->                written to that file instead of being run

Blocks of a page share one folder, in which `experiments` is that of the repository, and one Python
namespace. Commands run in this process with `engine.backend=local`, for speed; results do not
depend on it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

RUN = ("bash", "python", "yaml")
SHOWN = ("text", "")
TAKES_SETTINGS = ("run", "sweep", "partition")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (test|file): (.*?) -->\s*\Z")
_SKIP = re.compile(r"skip \((.{8,})\)")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str
    skip: str = ""
    args: tuple[str, ...] = ()
    ray: bool = False
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def needs_data(self) -> bool:
        """Whether it uses `$DATA`, the folder of real data."""
        return "$DATA" in self.text

    def commands(self) -> list[str]:
        """The command lines of a bash block, continuation lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def pages() -> list[Path]:
    """Every page of the documentation."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("docs", "experiments"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return found


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        block = Block(page, line, fence[1], fence[2], **_directive(text[: fence.start()]))
        found.append(block)
    return found


def _directive(before: str) -> dict[str, Any]:
    comment = _COMMENT.search(before)
    if comment is None:
        return {}
    what, said = comment.groups()
    if what == "file":
        return {"file": said}
    if skip := _SKIP.fullmatch(said):
        return {"skip": skip[1]}
    word, *args = shlex.split(said)
    if word == "args" and args:
        return {"args": tuple(args)}
    if word == "ray":
        return {"ray": True, "args": tuple(args)}
    raise ValueError(f"unknown comment <!-- test: {said} -->")


@dataclass
class Shell:
    """Runs the blocks of one page in one folder."""

    folder: Path
    data: Path
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "docs"})

    def run(self, block: Block) -> None:
        """Run a block; raises what it raises."""
        if block.file:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code = compile("\n" * block.line + block.text, str(block.page), "exec")
            exec(code, self.namespace)
        elif block.language == "bash":
            for command in block.commands():
                self._command(command, block)

    def _command(self, command: str, block: Block) -> None:
        words = shlex.split(command.replace("$DATA", str(self.data)), comments=True)
        if words[0] == "fedsim":
            words = words[1:]
            if words[0] in TAKES_SETTINGS:
                words += [*block.args, *([] if block.ray else ["engine.backend=local"])]
            if block.ray:
                _subprocess([sys.executable, "-m", "fedsim", *words], self.folder)
            else:
                _fedsim(words)
        else:
            _subprocess(["bash", "-c", command], self.folder)


def _fedsim(words: list[str]) -> None:
    from fedsim.cli.app import main

    codes: list[int] = []
    main(words, codes.append)
    assert codes == [0], f"fedsim {shlex.join(words)} exits with {codes[0]}"


def _subprocess(words: list[str], folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{shlex.join(words)} exits with {done.returncode}:\n{output}"
