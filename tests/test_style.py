"""Habits of this repository that no linter checks."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "fedsim").rglob("*.py"))

GLOBAL_RANDOMNESS = re.compile(
    r"\b(np|numpy)\.random\.(seed|rand|randn|randint|random|choice|permutation|shuffle|normal"
    r"|uniform|dirichlet)\("
    r"|\bdefault_rng\(\)"  # seeded by the operating system
    r"|\btorch\.(manual_seed|seed)\(|\btorch\.cuda\.manual_seed"
    r"|^import random\b|^from random\b|\brandom\.seed\("
)
RAY_IMPORT = re.compile(r"^\s*(import ray\b|from ray\b)", re.MULTILINE)

# What only one machine or one network knows.
LOCAL_PLACES = re.compile(
    r"(?<![\w.])/(home/(?!ray/)\w+|Users/\w+|root|work|opt/\w+|tmp/\w+|mnt/\w+)/"  # home/ray: image
    r"|\b(index-url|extra-index-url|find-links|trusted-host)\b"
    r"|\b(files\.)?py(pi|thonhosted)\.org\b",
    re.IGNORECASE,
)
PROMISES = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def lines_matching(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # not a text file
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    return found


def test_a_module_is_about_one_idea():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_every_public_module_says_what_it_is_about():
    silent = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if not path.name.startswith("_") or path.name == "__init__.py"
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_randomness_comes_from_seeding_only():
    others = [path for path in MODULES if path.name != "seeding.py"]
    assert lines_matching(GLOBAL_RANDOMNESS, others) == []


def test_only_the_cluster_folder_imports_ray():
    others = [path for path in MODULES if ROOT / "fedsim" / "cluster" not in path.parents]
    assert lines_matching(RAY_IMPORT, others) == []


def test_shipped_code_holds_no_promises():
    assert lines_matching(PROMISES, MODULES) == []


def test_no_file_names_one_machine_or_one_package_index():
    others = [path for path in tracked() if path != Path(__file__)]
    assert lines_matching(LOCAL_PLACES, others) == []


def test_no_large_file_is_tracked():
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked()}
    assert {name: size for name, size in large.items() if size > 4_000_000} == {}
