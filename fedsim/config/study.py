"""A study: one YAML file read, checked as a whole, and expanded into experiments.

The file holds the sections of `fedsim.config` shared by all runs, and the axes: `methods`,
`partitions`, `grid` and `seeds`. All problems are reported together, each with its place and a
hint, before any work starts.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from fedsim.config import Experiment
from fedsim.config.problems import SECTIONS, messages, shown
from fedsim.config.sections import Section
from fedsim.errors import ConfigError, did_you_mean
from fedsim.storage.remote import local_folder

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What can be the name of a file on every system."""

Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
"""What one axis of a grid goes through."""

_AXES = {
    "method": "methods",
    "seed": "seeds",
    "study": "study",
    "output": "output",
    "phase": "tune",
}
"""Fields of an experiment that its own settings cannot change, and where they come from."""


class EarlyStopping(Section):
    """Trials that lag behind end early: asynchronous successive halving (Li et al., 2020).

    Trials compete with those of the same method, partition and seed. After `grace_rounds` rounds,
    and every `reduction_factor` times as many, a trial goes on if it is among the best one in
    `reduction_factor` that have come as far. Who came first depends on the machine, and so, a
    little, does which trials end. Trials of an extended range, and those that are left after a
    kill, begin a competition of their own. Needs `engine.backend: ray`.
    """

    grace_rounds: int = Field(1, gt=0)
    """Rounds that every trial gets."""
    reduction_factor: int = Field(3, gt=1)
    """One trial in so many goes on."""


class TuneConfig(Section):
    """Hyper-parameter selection: same seeds, partitions and number of trials for every method."""

    seeds: tuple[int, ...] = Field((1000,), strict=False, min_length=1)
    """Never the seeds of the final tables."""
    extensions: int = Field(4, ge=0)
    """How often an optimum on the edge of a numeric range may extend it."""
    confirm_seeds: tuple[int, ...] = Field((), strict=False)
    """More seeds for every method's best trials, which the choice is then made from: what is best
    on one seed may be at the edge of divergence, and fail on the next."""
    confirm_best: int = Field(3, gt=0)
    """How many of its best trials."""
    early_stopping: EarlyStopping | None = None
    """End trials early that lag behind others; null lets all of them finish."""
    grid: dict[str, dict[str, Values]] = {}
    """method -> dotted key -> values; every method gets the same number of combinations."""


class Study(Section):
    """A YAML file: sections shared by all runs, and the axes of the sweep."""

    study: str = Field(pattern=_NAME)
    output: str = "runs"
    methods: dict[Annotated[str, Field(pattern=_NAME)], dict[str, Any]] = Field(min_length=1)
    """Name in tables -> its own settings: `use`, `options`, and dotted keys of any section."""
    partitions: tuple[dict[str, Any], ...] = Field((), strict=False)
    """Each entry overlays the shared `partition` section."""
    seeds: tuple[int, ...] = Field((0,), strict=False, min_length=1)
    grid: dict[str, Values] = {}
    """More axes: dotted key -> values, crossed with everything else."""
    tune: TuneConfig = TuneConfig()
    shared: dict[str, Any] = {}
    """The sections common to all runs, as given (`data`, `train`, ...)."""
    source: str = "<study>"
    """Where it was read from, for messages."""

    @property
    def folder(self) -> Path:
        """Where the study's output lives on this machine: `<output>/<study>`, or its copy."""
        return local_folder(f"{self.output}/{self.study}")

    def experiments(self, known_methods: Iterable[str]) -> list[Experiment]:
        """All final runs, in order: methods, then partitions, grid and seeds.

        Args:
            known_methods: Names that `use` may take besides a path to a Python file.

        Raises:
            ConfigError: Listing every problem of every run once, or runs that are the same.
        """
        axes = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        runs = itertools.product(self.methods, axes, self.seeds)
        found = self.resolve([(*run, "final") for run in runs], known_methods)
        last = {experiment.run_id: experiment for experiment in found}
        if again := [e for e in found if last[e.run_id] is not e]:
            names = {f"{e.method}, {e.partition.label}, seed {e.seed}" for e in again}
            raise ConfigError(
                f"{self.source}: the same run is given twice ({'; '.join(sorted(names))}): look "
                f"for a repeated entry in seeds, partitions or grid"
            )
        return found

    def resolve(
        self,
        runs: Iterable[tuple[str, Mapping[str, Any], int, str]],
        known_methods: Iterable[str],
    ) -> list[Experiment]:
        """Experiments for (method, dotted settings, seed, phase), each on every partition."""
        known, problems, found = tuple(known_methods), dict[str, None](), list[Experiment]()
        for name, point, seed, phase in runs:
            for place, partition in enumerate(self.partitions or ({},)):
                axes = {"grid": point, f"methods.{name}": self.methods[name]}
                axes[f"partitions.{place}"] = {"partition": partition} if partition else {}
                try:
                    found.append(self._experiment(name, seed, phase, axes, known))
                except ConfigError as error:
                    problems.update(dict.fromkeys(error.problems))
        if problems:
            raise ConfigError([f"{self.source}: {problem}" for problem in problems])
        return found

    def _experiment(
        self,
        name: str,
        seed: int,
        phase: str,
        axes: Mapping[str, Mapping[str, Any]],
        known: tuple[str, ...],
    ) -> Experiment:
        """One run: the shared sections, overlaid by `axes` (where from -> settings), last first."""
        tree: dict[str, Any] = {"study": self.study, "output": self.output, "seed": seed}
        tree |= {"method": name, "use": name, "phase": phase, "working_dir": str(Path.cwd())}
        problems = _overlay(tree, self.shared)
        for where, own in reversed(list(axes.items())):
            if where.startswith("partitions.") and not isinstance(tree.get("partition", {}), dict):
                continue  # what stands there is refused below
            wrong = [key for key in own if key in _AXES]
            problems += [f"{where}.{key}: a run's {key} is set by {_AXES[key]!r}" for key in wrong]
            own = {key: value for key, value in own.items() if key not in wrong}
            problems += _overlay(tree, own, f"{where}.")
        tree["use"] = use = self._use(str(tree["use"]))
        if use not in known and not use.partition(":")[0].endswith(".py"):
            problems.append(f"methods.{name}: unknown method {use!r}; {did_you_mean(use, known)}")
        try:
            experiment = Experiment.model_validate(tree)
        except ValidationError as error:
            problems += messages(error, Experiment, axes=axes)
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
            `seed=3` (one seed), `method=cachefl` or `methods=[cachefl, zero_shot]` (keep these);
            values are YAML. Setting `partition.*` replaces the `partitions` axis.

    Raises:
        ConfigError: If the file is missing, is no YAML mapping, or holds unknown keys.
    """
    path = Path(path)
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
    tree.setdefault("study", path.stem)
    return parse_study(tree, overrides, source=str(path))


def _no_such_study(path: Path) -> str:
    """What to say of a path that is no file: its folder's study files are the hint."""
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


def parse_study(
    tree: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "<study>"
) -> Study:
    """Check a study given as a mapping, as `load_study` does for a file.

    >>> study = parse_study({"study": "s", "methods": {"cachefl": {"train.lr": 0.1}}})
    >>> [e.train.lr for e in study.experiments(["cachefl"])]
    [0.1]
    """
    problems = list[str]()
    top = {name: value for name, value in tree.items() if value is not None}  # `train:` alone
    methods = top.get("methods")
    if isinstance(methods, list):  # a bare list of names is the same as empty settings
        top["methods"] = {str(name): {} for name in methods}
        if len(top["methods"]) < len(methods):
            problems.append("methods: a name is given more than once")
    elif isinstance(methods, dict):
        top["methods"] = {
            str(name): {} if settings is None else copy.deepcopy(settings)
            for name, settings in methods.items()
        }
    known = set(top["methods"]) if isinstance(top.get("methods"), dict) else set()
    for text in overrides:
        problems += _override(top, text)
    if isinstance(top.get("methods"), dict):
        problems += _check_reference(top.get("report"), known | set(top["methods"]))
    shared = {name: top.pop(name) for name in SECTIONS if name in top}
    try:
        study = Study.model_validate({**top, "shared": shared, "source": source})
    except ValidationError as error:
        problems += messages(error, Study, extra=SECTIONS)
    if problems:
        raise ConfigError([f"{source}: {problem}" for problem in problems])
    return study


def _check_reference(report: Any, methods: set[str]) -> list[str]:
    """The method to compare with is one of the study, also of what an override leaves out."""
    name = report.get("reference_method") if isinstance(report, dict) else None
    if not isinstance(name, str) or name in methods:
        return []
    return [f"report.reference_method: no method {name!r} here; {did_you_mean(name, methods)}"]


def _override(tree: dict[str, Any], text: str) -> list[str]:
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        return [f"override {text!r} must look like train.lr=0.1"]
    try:
        value = yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError:
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
    if key == "grid":  # in place of the file's axes; their names are dotted
        tree["grid"] = value
        return []
    if key.startswith("grid."):
        grid = tree.get("grid")
        tree["grid"] = {**(grid if isinstance(grid, dict) else {}), key[5:]: value}
        return []
    problems = []
    for name, leaf in _leaves(key, value):
        if name.partition(".")[0] in SECTIONS:
            _uncover(tree, name)
        problems += _overlay(tree, {name: leaf})
    return problems


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Settings of a section one by one: `train={lr: 0.1}` is `train.lr=0.1`."""
    if isinstance(value, Mapping) and value and key.partition(".")[0] in SECTIONS:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _uncover(tree: dict[str, Any], key: str) -> None:
    """Remove what would hide an override: axes over the same setting, and methods' own values."""
    section, _, rest = key.partition(".")
    if section == "partition" and "partitions" in tree:
        # One split from the command line stands in place of the axis in the file.
        axis, shared = tree.pop("partitions"), tree.get("partition", {})
        first = axis[0] if isinstance(axis, list) and axis and rest != "scheme" else {}
        if isinstance(first, dict) and isinstance(shared, dict):
            tree["partition"] = {**shared, **first}
    if isinstance(tree.get("grid"), dict):
        tree["grid"] = {name: values for name, values in tree["grid"].items() if name != key}
    methods = tree.get("methods")
    for settings in methods.values() if isinstance(methods, dict) else ():
        _remove(settings, key)


def _remove(settings: Any, key: str) -> None:
    """Delete a dotted setting, however deep it is nested."""
    if isinstance(settings, dict):
        settings.pop(key, None)
        for name, inner in settings.items():
            if key.startswith(f"{name}."):
                _remove(inner, key.removeprefix(f"{name}."))


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

__all__ = ["SECTIONS", "Study", "TuneConfig", "load_study", "parse_study"]
