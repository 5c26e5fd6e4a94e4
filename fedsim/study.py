"""A study: one YAML file read, checked as a whole, and expanded into experiments.

The file holds the sections of `fedsim.config` shared by all runs, and the axes: `methods`,
`partitions`, `grid` and `seeds`. All problems are reported together, each with its place and a
hint, before any work starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from fedsim.config import Experiment, Section
from fedsim.errors import ConfigError, did_you_mean

SECTIONS = tuple(
    name
    for name, field in Experiment.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
)


class TuneConfig(Section):
    """Hyper-parameter selection: same seeds, partitions and number of trials for every method."""

    seeds: tuple[int, ...] = Field((1000,), strict=False, min_length=1)
    """Never the seeds of the final tables."""
    extensions: int = Field(2, ge=0)
    """How often an optimum on the edge of a numeric range may extend it."""
    grid: dict[str, dict[str, tuple[Any, ...]]] = Field({}, strict=False)
    """method -> dotted key -> values; every method gets the same number of combinations."""


class Study(Section):
    """A YAML file: sections shared by all runs, and the axes of the sweep."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    output: str = "runs"
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name in tables -> its own settings: `use`, `options`, and dotted keys of any section."""
    partitions: tuple[dict[str, Any], ...] = Field((), strict=False)
    """Each entry overlays the shared `partition` section."""
    seeds: tuple[int, ...] = Field((0,), strict=False, min_length=1)
    grid: dict[str, tuple[Any, ...]] = Field({}, strict=False)
    """More axes: dotted key -> values, crossed with everything else."""
    tune: TuneConfig = TuneConfig()
    shared: dict[str, Any] = {}
    """The sections common to all runs, as given (`data`, `train`, ...)."""
    source: str = "<study>"
    """Where it was read from, for messages."""

    @property
    def folder(self) -> Path:
        """Where the study's output lives: `<output>/<study>`."""
        return Path(self.output) / self.study

    def experiments(self, known_methods: Iterable[str]) -> list[Experiment]:
        """All final runs, in order: methods, then partitions, grid and seeds.

        Args:
            known_methods: Names that `use` may take besides a path to a Python file.

        Raises:
            ConfigError: Listing every problem of every run once.
        """
        axes = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        return self.resolve(
            [(name, point, seed, "final") for name in self.methods for point in axes for seed in self.seeds],
            known_methods,
        )

    def resolve(
        self,
        runs: Iterable[tuple[str, Mapping[str, Any], int, str]],
        known_methods: Iterable[str],
    ) -> list[Experiment]:
        """Experiments for (method, dotted settings, seed, phase), each on every partition."""
        known, problems, found = tuple(known_methods), dict[str, None](), list[Experiment]()
        for name, point, seed, phase in runs:
            for partition in self.partitions or ({},):
                try:
                    found.append(self._experiment(name, partition, point, seed, phase, known))
                except ConfigError as error:
                    problems.update(dict.fromkeys(error.problems))
        if problems:
            raise ConfigError([f"{self.source}: {problem}" for problem in problems])
        return found

    def _experiment(
        self,
        name: str,
        partition: Mapping[str, Any],
        point: Mapping[str, Any],
        seed: int,
        phase: str,
        known: tuple[str, ...],
    ) -> Experiment:
        tree: dict[str, Any] = {"study": self.study, "output": self.output, "seed": seed}
        tree |= {"method": name, "use": name, "phase": phase}
        problems = _overlay(tree, self.shared)
        if isinstance(tree.get("partition", {}), dict):
            problems += _overlay(tree, {"partition": dict(partition)})
        problems += _overlay(tree, self.methods[name], f"methods.{name}.")
        problems += _overlay(tree, point)
        tree["use"] = use = self._use(str(tree["use"]))
        if use not in known and not use.partition(":")[0].endswith(".py"):
            problems.append(f"methods.{name}: unknown method {use!r}; {did_you_mean(use, known)}")
        try:
            experiment = Experiment.model_validate(tree)
        except ValidationError as error:
            problems += _messages(error, Experiment)
        if problems:
            raise ConfigError(problems)
        return experiment.resolved()


    def _use(self, use: str) -> str:
        """A method file is looked for beside the study first, then where fedsim was started."""
        file, colon, name = use.partition(":")
        beside = Path(self.source).parent / file
        return f"{beside}{colon}{name}" if file.endswith(".py") and beside.is_file() else use


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Read a study file and apply `key=value` overrides.

    Args:
        path: The YAML file.
        overrides: Dotted settings such as `partition.dirichlet_alpha=0.1`, `seeds=[0,1]`,
            `seed=3` (one seed) or `method=cachefl` (keep one method); values are YAML. Setting
            `partition.*` replaces the `partitions` axis.

    Raises:
        ConfigError: If the file is missing, is no YAML mapping, or holds unknown keys.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; {did_you_mean(path.name, near)}" if near else ""
        raise ConfigError(f"no study file {str(path)!r}{hint}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping such as 'study: my-study', not {tree!r:.40}")
    tree.setdefault("study", path.stem)
    return parse_study(tree, overrides, source=str(path))


def parse_study(
    tree: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "<study>"
) -> Study:
    """Check a study given as a mapping, as `load_study` does for a file.

    >>> study = parse_study({"study": "s", "methods": {"cachefl": {"train.lr": 0.1}}})
    >>> [e.train.lr for e in study.experiments(["cachefl"])]
    [0.1]
    """
    top, problems = dict(tree), list[str]()
    methods = top.get("methods")
    if isinstance(methods, list):  # a bare list of names is the same as empty settings
        top["methods"] = {str(name): {} for name in methods}
    elif isinstance(methods, dict):
        top["methods"] = {str(name): settings or {} for name, settings in methods.items()}
    for text in overrides:
        problems += _override(top, text)
    shared = {name: top.pop(name) for name in SECTIONS if name in top}
    try:
        study = Study.model_validate({**top, "shared": shared, "source": source})
    except ValidationError as error:
        problems += _messages(error, Study, extra=SECTIONS)
    if problems:
        raise ConfigError([f"{source}: {problem}" for problem in problems])
    return study


def _override(tree: dict[str, Any], text: str) -> list[str]:
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        return [f"override {text!r} must look like train.lr=0.1"]
    try:
        value = yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError:
        return [f"override {text!r}: the value is not valid YAML"]
    if key == "method":
        methods = tree.get("methods") or {}
        if value in methods:
            tree["methods"] = {value: methods[value]}
        else:
            tree["methods"] = {str(value): {}}
        return []
    if key == "seed":
        tree["seeds"] = [value]
        return []
    section, _, rest = key.partition(".")
    if section == "partition" and tree.get("partitions"):
        # One split from the command line stands in place of the axis in the file.
        first = dict(tree.pop("partitions")[0]) if rest != "scheme" else (tree.pop("partitions"), {})[1]
        tree["partition"] = {**(tree.get("partition") or {}), **first}
    if rest and section in SECTIONS:  # a method's own setting would hide the override
        for settings in (tree.get("methods") or {}).values():
            if isinstance(settings, dict):
                settings.pop(key, None)
    return _overlay(tree, {key: value})


def _overlay(tree: dict[str, Any], settings: Mapping[str, Any], where: str = "") -> list[str]:
    """Write dotted or nested settings into a tree; returns what could not be written."""
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
                problems += _overlay(child, value, f"{where}{key}.")
                node[last] = child
            else:
                node[last] = dict(value) if isinstance(value, Mapping) else value
    return problems


def _messages(error: ValidationError, model: type[Section], extra: Iterable[str] = ()) -> list[str]:
    """Pydantic's findings as one line each: place, problem, hint."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            owner: Any = model
            for part in item["loc"][:-1]:
                owner = getattr(owner, "model_fields", {}).get(part)
                owner = getattr(owner, "annotation", None)
            names = set(getattr(owner, "model_fields", {})) - {"shared", "source"}
            names |= set(extra) if owner is model else set()
            lines.append(f"unknown setting {where!r}; {did_you_mean(str(item['loc'][-1]), names)}")
        elif item["type"] == "missing":
            lines.append(f"{where} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if item["type"] == "value_error" else f" (got {item['input']!r:.60})"
            lines.append(f"{where}: {message}{got}" if where else message)
    return lines


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)

__all__ = ["SECTIONS", "Study", "TuneConfig", "load_study", "parse_study"]
