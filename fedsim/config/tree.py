"""Nested settings and their dotted names: `train: {lr: 0.1}` and `train.lr: 0.1` are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name. An empty mapping is a value.

    >>> dict(flatten({"train": {"lr": 0.1}, "grid": {}, "seeds": [0, 1]}))
    {'train.lr': 0.1, 'grid': {}, 'seeds': [0, 1]}
    """
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def overlay(tree: dict[str, Any], settings: Mapping[str, Any], where: str = "") -> list[str]:
    """Write dotted or nested settings into a tree, which keeps its other settings.

    Mappings within the tree are copied before they change.

    Args:
        tree: What is written to.
        settings: Dotted or nested.
        where: Stands before a setting's name in problems.

    Returns:
        What could not be written.

    >>> tree = {"train": {"lr": 0.1}}
    >>> overlay(tree, {"train.rounds": 3}), tree
    ([], {'train': {'lr': 0.1, 'rounds': 3}})
    """
    problems = []
    for key, value in settings.items():
        *parents, last = str(key).split(".")
        node = tree
        for parent in parents:
            child = node.get(parent)
            child = dict(child) if isinstance(child, dict) else {} if child is None else None
            if child is None:
                problems.append(f"{where}{key}: {parent!r} holds a value, not a section")
                break
            node[parent] = child
            node = child
        else:
            if isinstance(value, Mapping) and isinstance(node.get(last), Mapping):
                child = dict(node[last])
                problems += overlay(child, value, f"{where}{key}.")
                node[last] = child
            else:
                node[last] = dict(value) if isinstance(value, Mapping) else value
    return problems


def remove(settings: Any, key: str) -> None:
    """Delete a dotted setting, however deep it is nested."""
    if isinstance(settings, dict):
        settings.pop(key, None)
        for name, inner in settings.items():
            if key.startswith(f"{name}."):
                remove(inner, key.removeprefix(f"{name}."))
