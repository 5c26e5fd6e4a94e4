"""Reads a YAML file into a mapping. Every error is one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fedsim.config.problems import shown
from fedsim.errors import ConfigError, did_you_mean


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a study file holds.

    Raises:
        ConfigError: If the file is missing or is no YAML mapping.
    """
    if not path.is_file():
        raise ConfigError(_no_such_study(path))
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_yaml_problem(error)}") from error
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds {shown(tree)}"
        raise ConfigError(
            f"{path} {found}: a study is a mapping, at least `methods: [fedavg_head]`"
        )
    return tree


def parse_value(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        ValueError: If it is not valid YAML.

    >>> parse_value("1e-3"), parse_value("[cachefl, zero_shot]")
    (0.001, ['cachefl', 'zero_shot'])
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(_yaml_problem(error)) from error


def _no_such_study(path: Path) -> str:
    """The message for a path that is no file; the study files of its folder are the hint."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"no study file {str(path)!r}: there is no folder {str(folder)!r}"
    near = sorted(p.name for p in folder.glob("*.y*ml"))
    if path.is_dir():
        inside = f"it holds {', '.join(near)}" if near else "give the study's YAML file"
        return f"{str(path)!r} is a folder, not a study file; {inside}"
    return f"no study file {str(path)!r}" + (f"; {did_you_mean(path.name, near)}" if near else "")


def _yaml_problem(error: yaml.YAMLError) -> str:
    """A YAML error in one line, with its place."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    text = f"{problem}, {context}" if context and mark else str(problem)
    if "'\\t'" in text:
        text += ": indent with spaces, not tabs"
    if mark is not None:
        return f"{text} (line {mark.line + 1}, column {mark.column + 1})"
    position = getattr(error, "position", None)
    return text if position is None else f"{text} (character {position + 1})"


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number and refuses a key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} is given twice"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)
