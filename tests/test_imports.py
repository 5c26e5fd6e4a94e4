"""No file of `fedsim/` imports another one in a circle, not even inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in sorted((ROOT / "fedsim").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports when it runs; `from a import b` gives `a.b` and `a`."""
    for node in ast.iter_child_nodes(tree):
        if only_for_types(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def graph() -> dict[str, set[str]]:
    known = modules()
    arrows: dict[str, set[str]] = {}
    for name, path in known.items():
        arrows[name] = set()
        for imported in imports(ast.parse(path.read_text())):
            home = imported if imported in known else imported.rpartition(".")[0]
            if home in known and home != name:
                arrows[name].add(home)
    return arrows


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach themselves, one list per circle (strongly connected component)."""
    reached = {name: set(direct) for name, direct in arrows.items()}
    for middle in arrows:
        for name in arrows:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    found, seen = [], set[str]()
    for name in arrows:
        if name in reached[name] and name not in seen:
            circle = sorted(other for other in reached[name] if name in reached[other])
            seen |= set(circle)
            found.append(circle)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_the_package_has_no_circles():
    assert circles(graph()) == []


def test_the_graph_sees_imports_inside_functions():
    assert "fedsim.config.study_file" in graph()["fedsim.cli.app"]
