"""Start-up stays light. The rest of who may import whom is checked by `lint-imports`."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedsim"
HEAVY = ["torch", "ray", "pandas", "matplotlib", "sklearn", "scipy", "statsmodels", "open_clip"]
# The driver reads configurations and tables, and starts runs; none of that needs torch.
WITHOUT_TORCH = ["cli", "config", "data", "storage", "errors.py", "seeding.py", "results"]


@pytest.mark.parametrize("modules", ["fedsim", "fedsim, fedsim.config, fedsim.cli.app"])
def test_starting_up_imports_nothing_heavy(modules: str):
    script = f"import json, sys, {modules}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert [name for name in HEAVY if name in json.loads(run.stdout)] == []


@pytest.mark.parametrize("where", WITHOUT_TORCH)
def test_torch_is_not_imported_at_module_level(where: str):
    home = PACKAGE / where
    assert home.exists()
    for path in [home] if home.is_file() else sorted(home.rglob("*.py")):
        assert "torch" not in _imported_when_loaded(path), path


def _imported_when_loaded(path: Path) -> set[str]:
    """Top-level packages that a file imports outside functions and `if TYPE_CHECKING`."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                pending.extend(node.orelse)
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
            pending.append(node)
    return found


def test_contributing_lists_the_layers_that_are_checked():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    (contract,) = (
        c
        for c in settings["tool"]["importlinter"]["contracts"]
        if c["type"] == "layers" and c["containers"] == ["fedsim"]
    )
    checked = [set(re.findall(r"[a-z]+", layer)) for layer in contract["layers"][1:]]
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`[a-z`, ]+) \|", text, re.MULTILINE)
    assert [set(re.findall(r"[a-z]+", row)) for row in rows] == checked


def test_few_files_lie_loose_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 7


def test_a_file_name_means_one_thing():
    """Two files of one name would have a reader guess which one is meant."""
    allowed = {"__init__", "__main__", "base"}
    names = sorted(path.stem for path in PACKAGE.rglob("*.py") if path.stem not in allowed)
    assert [name for name in names if names.count(name) > 1] == []


def test_a_class_name_means_one_thing():
    """`Options` is what every part of a family calls its own settings."""
    names = [
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [name for name in names if names.count(name) > 1 and name != "Options"] == []
