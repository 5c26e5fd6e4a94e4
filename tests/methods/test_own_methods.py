"""A method of one's own, from a file."""

from pathlib import Path

import pytest

from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.methods import method_class

GOOD = """
from fedsim.methods.base import Method
from fedsim.methods.zero_shot import ZeroShot  # imported, not defined here

class Mine(Method):
    value = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_the_only_class_of_a_file_needs_no_name(file: Path):
    assert method_class(str(file)).__name__ == "Mine"
    assert method_class(f"{file}:Mine") is method_class(str(file))


def test_an_edited_file_is_read_again(file: Path):
    assert method_class(str(file)).value == 1  # type: ignore[attr-defined]
    file.write_text(GOOD.replace("value = 1", "value = 2"))
    assert method_class(str(file)).value == 2  # type: ignore[attr-defined]


def test_several_classes_have_to_be_named(file: Path):
    file.write_text(GOOD + "\nclass Other(Mine):\n    value = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.py:Mine or .*mine\.py:Other"):
        method_class(str(file))
    assert method_class(f"{file}:Other").value == 3  # type: ignore[attr-defined]


def test_a_file_without_a_method_is_refused(file: Path):
    file.write_text("from fedsim.methods.zero_shot import ZeroShot\nclass Mine: pass")
    with pytest.raises(ConfigError, match="holds no method: write a subclass"):
        method_class(str(file))


def test_unknown_classes_get_a_hint(file: Path):
    with pytest.raises(ConfigError, match="no method 'Mini'; did you mean 'Mine'"):
        method_class(f"{file}:Mini")
    with pytest.raises(ConfigError, match="no method 'ZeroShot'"):
        method_class(f"{file}:ZeroShot")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import nosuchmodule_", "ModuleNotFoundError: No module named 'nosuchmodule_'"),
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_a_file_that_fails_says_why(file: Path, text: str, error: str):
    file.write_text(text)
    for _ in range(2):  # a failed import is not remembered as a success
        with pytest.raises(ConfigError, match=f"mine.py fails to import: {error}") as caught:
            method_class(str(file))
    assert caught.value.__cause__ is not None


def test_missing_files_and_names_are_told_apart(tmp_path: Path):
    with pytest.raises(ConfigError, match="no file .*none.py"):
        method_class(str(tmp_path / "none.py"))
    with pytest.raises(ConfigError, match="unknown method 'fedavg_haed'; did you mean"):
        method_class("fedavg_haed")


def test_two_files_of_one_name_are_two_methods(file: Path, tmp_path: Path):
    other = tmp_path / "sub" / "mine.py"
    other.parent.mkdir()
    other.write_text(GOOD.replace("value = 1", "value = 5"))
    assert method_class(str(file)).value == 1  # type: ignore[attr-defined]
    assert method_class(str(other)).value == 5  # type: ignore[attr-defined]


def test_a_file_in_the_home_folder_is_known_by_its_content(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(file.parent))
    assert method_class("~/mine.py").value == 1  # type: ignore[attr-defined]
    experiment = Experiment(study="s", method="mine", use="~/mine.py")
    before = experiment.run_id
    file.write_text(GOOD.replace("value = 1", "value = 2"))
    assert experiment.run_id != before
