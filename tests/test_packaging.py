"""What gets installed: metadata, entry point, data files, tested versions."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedsim

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *extras["dev"], *extras["hf"]]]


def test_the_version_has_one_source():
    assert fedsim.__version__ == PROJECT["version"] == importlib.metadata.version("fedsim")


def test_public_names_are_explicit_and_all_load():
    assert fedsim.__all__ == ["FedsimError", "__version__", "load"]
    assert dir(fedsim) == fedsim.__all__
    for name in fedsim.__all__:
        assert getattr(fedsim, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = fedsim.laod


def test_the_tested_versions_lie_within_the_declared_ranges():
    tested = {canonicalize_name(name): version for name, version in (p.split("==") for p in pins())}
    for requirement in requirements():
        version = tested[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


def test_constraints_are_plain_sorted_pins():
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins())
    assert pins() == sorted(pins(), key=str.lower)


def test_dependencies_are_ranges():
    for requirement in requirements():
        assert not any(spec.operator in ("==", "===", "~=") for spec in requirement.specifier)


def test_python_dash_m_is_the_command():
    help_text = subprocess.run(
        [sys.executable, "-m", "fedsim", "--help"], capture_output=True, text=True, check=True
    ).stdout
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="fedsim")
    assert command.value == "fedsim.cli.app:main"
    assert "sweep" in help_text


def test_type_hints_are_published():
    assert (Path(fedsim.__file__).parent / "py.typed").is_file()
