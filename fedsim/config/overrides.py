"""Overrides: settings on the command line, which replace those of the study file."""

from __future__ import annotations

from typing import Any

from fedsim.config.problems import SECTIONS
from fedsim.config.tree import flatten, overlay, remove
from fedsim.config.yaml_file import parse_value


def override(tree: dict[str, Any], text: str) -> list[str]:
    """Apply one override `key=value` to a study; returns what is wrong with it."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        return [f"override {text!r} must look like train.lr=0.1"]
    try:
        value = parse_value(raw)
    except ValueError:
        return [f"override {text!r}: the value is not valid YAML (lists look like 'seeds=[0, 1]')"]
    if key == "method" or (key == "methods" and isinstance(value, list)):
        methods = tree.get("methods")
        own = methods if isinstance(methods, dict) else {}
        names = [str(name) for name in (value if key == "methods" else [value])]
        tree["methods"] = {name: own.get(name) or {} for name in names}
        tune = tree.get("tune")
        if isinstance(tune, dict) and isinstance(tune.get("grid"), dict):
            left_out = own.keys() - set(names)
            kept = {name: axes for name, axes in tune["grid"].items() if name not in left_out}
            tree["tune"] = {**tune, "grid": kept}
        return []
    if key == "seed":
        tree["seeds"] = [value]
        return []
    if key == "grid":  # replaces all axes of the file; the names of axes are dotted
        tree["grid"] = value
        return []
    if key.startswith("grid."):
        grid = tree.get("grid")
        tree["grid"] = {**(grid if isinstance(grid, dict) else {}), key[5:]: value}
        return []
    if key.partition(".")[0] not in SECTIONS:
        return overlay(tree, {key: value})
    problems = []
    for name, leaf in flatten({key: value}):  # `train={lr: 0.1}` is `train.lr=0.1`
        _uncover(tree, name)
        problems += overlay(tree, {name: leaf})
    return problems


def _uncover(tree: dict[str, Any], key: str) -> None:
    """Remove what would hide an override: axes over the same setting, and methods' own values."""
    section, _, rest = key.partition(".")
    if section == "partition" and "partitions" in tree:
        # One split on the command line replaces the axis in the file.
        axis, shared = tree.pop("partitions"), tree.get("partition", {})
        first = axis[0] if isinstance(axis, list) and axis and rest != "scheme" else {}
        if isinstance(first, dict) and isinstance(shared, dict):
            tree["partition"] = {**shared, **first}
    if isinstance(tree.get("grid"), dict):
        tree["grid"] = {name: values for name, values in tree["grid"].items() if name != key}
    methods = tree.get("methods")
    for settings in methods.values() if isinstance(methods, dict) else ():
        remove(settings, key)
