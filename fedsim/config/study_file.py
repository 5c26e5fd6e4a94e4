"""A study: one YAML file read, checked as a whole, and expanded into experiments.

The file holds the sections of `fedsim.config` shared by all runs, and the axes: `methods`,
`partitions`, `grid` and `seeds`. All problems are reported together, each with its place and a
hint, before any work starts.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedsim.config.base import Section
from fedsim.config.experiment import Experiment
from fedsim.config.overrides import override
from fedsim.config.problems import SECTIONS, messages
from fedsim.config.tree import overlay
from fedsim.config.tune import TuneConfig, Values
from fedsim.config.yaml_file import read_yaml
from fedsim.errors import ConfigError, did_you_mean
from fedsim.storage.remote import local_folder

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names that files may have on every system."""

_AXES = {
    "method": "methods",
    "seed": "seeds",
    "study": "study",
    "output": "output",
    "phase": "tune",
}
"""Fields of an experiment that its own settings cannot change, and where they come from."""


class StudyFile(Section):
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
        problems = overlay(tree, self.shared)
        for where, own in reversed(list(axes.items())):
            if where.startswith("partitions.") and not isinstance(tree.get("partition", {}), dict):
                continue  # a `partition` that is no section is refused below
            wrong = [key for key in own if key in _AXES]
            problems += [f"{where}.{key}: a run's {key} is set by {_AXES[key]!r}" for key in wrong]
            own = {key: value for key, value in own.items() if key not in wrong}
            problems += overlay(tree, own, f"{where}.")
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


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> StudyFile:
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
    tree = read_yaml(path)
    tree.setdefault("study", path.stem)
    return parse_study(tree, overrides, source=str(path))


def parse_study(
    tree: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "<study>"
) -> StudyFile:
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
        problems += override(top, text)
    if isinstance(top.get("methods"), dict):
        problems += _check_reference(top.get("report"), known | set(top["methods"]))
    shared = {name: top.pop(name) for name in SECTIONS if name in top}
    try:
        study = StudyFile.model_validate({**top, "shared": shared, "source": source})
    except ValidationError as error:
        problems += messages(error, StudyFile, extra=SECTIONS)
    if problems:
        raise ConfigError([f"{source}: {problem}" for problem in problems])
    return study


def _check_reference(report: Any, methods: set[str]) -> list[str]:
    """Refuse a reference method that the study lacks; an override may have left it out."""
    name = report.get("reference_method") if isinstance(report, dict) else None
    if not isinstance(name, str) or name in methods:
        return []
    return [f"report.reference_method: no method {name!r} here; {did_you_mean(name, methods)}"]
