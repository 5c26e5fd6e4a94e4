"""`fedsim` called in this process, in a folder that holds a small study."""

from pathlib import Path

import pytest

from fedsim.cli.app import main
from tests.cli.place import Fedsim, Result, write_study


@pytest.fixture
def fedsim(capsys: pytest.CaptureFixture[str]) -> Fedsim:
    """Runs `fedsim` with arguments."""

    def call(*arguments: str | Path) -> Result:
        codes: list[int] = []
        main([str(argument) for argument in arguments], leave=codes.append)
        (code,) = codes
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `study.yaml` on `features.npz`, and `digits.yaml`."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the second that drawing takes."""

    def write_report(folder: Path) -> Path:
        return folder / "report.html"

    monkeypatch.setattr("fedsim.results.report.page.write_report", write_report)
