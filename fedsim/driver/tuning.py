"""Choosing hyper-parameters: the same number of trials for every method, on held-out client data.

Trials run on seeds that the final tables never use, as runs with `phase=tune`. Their `accuracy` is
that of `client_holdout`, and no model sees test data. A trial that diverges counts as 0. If the
best value lies at the edge of a numeric range, one value beyond the edge is tried. The other
methods get as many more trials around their own best. With `confirm_seeds`, every method's best
trials run on these seeds as well, and the choice is made among them. All trials stay in the tables.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import typer
import yaml

from fedsim.config import Experiment
from fedsim.config.study_file import StudyFile
from fedsim.config.tune import EarlyStopping
from fedsim.driver.ranges import Point, extend, in_order, product, refine
from fedsim.errors import ConfigError, ExecutionError, did_you_mean
from fedsim.methods import METHODS, check_options, method_class
from fedsim.storage.remote import Copy, url_of


class Score(NamedTuple):
    """Trials are ranked by the number of runs that went on to the end, then by their accuracy."""

    whole: int
    """Runs that were not stopped early; 0 for a trial whose runs have all failed."""
    accuracy: float
    """Mean over its runs, in their last rounds; failed runs count as 0."""
    stopped: int = 0
    """Runs that were."""


@dataclass
class Trial:
    """Some settings, the runs with them, and their score."""

    point: Point
    runs: list[Experiment]
    score: Score = field(default_factory=lambda: Score(0, 0.0))
    confirmed: bool = False
    """Whether it was run on the study's `confirm_seeds` as well."""


class Search:
    """The trials of one method, which begin with some points."""

    def __init__(self, study: StudyFile, name: str, points: list[Point]) -> None:
        self._study, self.name = study, name
        self.trials: list[Trial] = []
        self._asked = 0
        self.add(points)

    @property
    def points(self) -> list[Point]:
        """The settings of all trials."""
        return [trial.point for trial in self.trials]

    def new_runs(self) -> list[Experiment]:
        """The runs of trials that have been added since this was last asked."""
        new, self._asked = self.trials[self._asked :], len(self.trials)
        return [run for trial in new for run in trial.runs]

    def add(self, points: Iterable[Point]) -> None:
        """One more trial for every point that has none."""
        for point in points:
            if point not in self.points:
                self.trials.append(Trial(point, self._runs(point, self._study.tune.seeds)))

    def best(self) -> Point:
        """The settings with the best score, of confirmed trials where there are any.

        Raises:
            ExecutionError: No trial finished.
        """
        trials = [trial for trial in self.trials if trial.confirmed] or self.trials
        if not any(trial.score.accuracy > 0 for trial in trials):
            raise ExecutionError(
                f"tuning: no trial of {self.name} finished; the reasons are in the column `error` "
                f"of the table runs, and above"
            )
        return max(trials, key=lambda trial: trial.score).point

    def further(self) -> list[Point]:
        """One value beyond the best that is at an edge, if the configuration allows it."""
        return [point for point in extend(self.points, self.best()) if self._allowed(point)]

    def refine(self, most: int) -> None:
        """Add trials near the best one, up to `most` in all."""
        for point in refine(self.points, self.best()):
            if len(self.trials) >= most:
                break
            if self._allowed(point):
                self.add([point])

    def confirm(self) -> list[Experiment]:
        """More runs of the best trials, on seeds for that; none where the study has none."""
        tune, more = self._study.tune, list[Experiment]()
        found = [trial for trial in self.trials if trial.score.accuracy > 0]
        leaders = sorted(found, key=lambda trial: trial.score, reverse=True)
        for trial in leaders[: tune.confirm_best] if tune.confirm_seeds else ():
            runs = self._runs(trial.point, tune.confirm_seeds)
            trial.runs, trial.confirmed = trial.runs + runs, True
            more += runs
        return more

    def _runs(self, point: Point, seeds: tuple[int, ...]) -> list[Experiment]:
        """The runs of one trial: on every partition and on these seeds."""
        return self._study.resolve([(self.name, point, seed, "tune") for seed in seeds], METHODS)

    def _allowed(self, point: Point) -> bool:
        try:
            for experiment in self._runs(point, self._study.tune.seeds):
                check_options(experiment.for_method(), method_class(experiment.use))
        except ConfigError:
            return False
        return True


def first_trials(study: StudyFile) -> list[Experiment]:
    """The runs of the study's `tune.grid`, before any range is extended.

    Raises:
        ConfigError: If the grid is missing, unequal, or tunes seeds of the final tables.
    """
    return [run for search in _searches(study) for trial in search.trials for run in trial.runs]


def tune_study(
    study: StudyFile, execute: Callable[[list[Experiment], EarlyStopping | None], None]
) -> dict[str, Point]:
    """Run the study's `tune` section and choose each method's settings.

    `execute` runs experiments to their end, or to where early stopping ends them.

    Returns:
        The chosen settings per method; also printed, and written to `<study>/selected.yaml`.

    Raises:
        ConfigError: If the grid is missing, unequal, or tunes seeds of the final tables.
        ExecutionError: If no trial of a method finished.
    """
    searches = _searches(study)
    for extension in itertools.count():
        new = [run for search in searches for run in search.new_runs()]
        execute(new, study.tune.early_stopping)
        _judge(study, searches)
        further = [search.further() for search in searches]
        if not any(further) or extension == study.tune.extensions:
            break
        for search, points in zip(searches, further, strict=True):
            search.add(points)
        # Every method gets as many trials as the one whose ranges grew most.
        most = max(len(search.trials) for search in searches)
        for search in searches:
            search.refine(most)
    if study.tune.confirm_seeds:
        execute([run for search in searches for run in search.confirm()], None)
        _judge(study, searches)
    _write(study, searches)
    return {search.name: search.best() for search in searches}


def _searches(study: StudyFile) -> list[Search]:
    """One search for every method's grid, checked."""
    grids = {name: {k: in_order(v) for k, v in g.items()} for name, g in study.tune.grid.items()}
    points = {name: list(product(grid)) for name, grid in grids.items()}
    _check(study, points)
    return [Search(study, name, trials) for name, trials in points.items()]


def _check(study: StudyFile, points: dict[str, list[Point]]) -> None:
    problems = []
    if not points:
        problems.append(
            "there is nothing to tune: add a range per method, such as tune: {grid: "
            "{METHOD: {train.lr: [0.01, 0.1, 1.0]}}}"
        )
    for name in points:
        if name not in study.methods:
            hint = did_you_mean(name, study.methods)
            problems.append(f"tune.grid.{name}: the study has no such method; {hint}")
    if len({len(trials) for trials in points.values()}) > 1:
        listed = ", ".join(f"{name} {len(trials)}" for name, trials in points.items())
        problems.append(
            f"tune.grid: every method gets the same number of trials, not {listed}; add or remove "
            f"values"
        )
    seeds = study.tune.seeds + study.tune.confirm_seeds
    if len(set(seeds)) < len(seeds):
        problems.append("tune.confirm_seeds: each seed once, and none of tune.seeds")
    shared = set(study.seeds) & set(seeds)
    if shared:
        listed = ", ".join(map(str, sorted(shared)))
        problems.append(
            f"tune.seeds: {listed} would be tuned on and reported; final tables need seeds that "
            f"tuning never saw: choose others, such as tune.seeds=[{1 + max(1000, *study.seeds)}]"
        )
    if problems:
        raise ConfigError([f"{study.source}: {problem}" for problem in problems])


def _judge(study: StudyFile, searches: list[Search]) -> None:
    """Score every trial by the tables: held-out accuracy of the last round."""
    from fedsim.results.study import load

    tables = load(study.folder)
    status = tables.read("runs", ["run_id", "status"]).set_index("run_id").status
    stopped = set(status.index[status == "stopped"]) if study.tune.early_stopping else set()
    rounds = tables.read("rounds", ["run_id", "round", "accuracy"]).sort_values("round")
    rounds = rounds[rounds.run_id.isin({*status.index[status == "finished"], *stopped})]
    last = rounds.groupby("run_id").accuracy.last()
    for trial in (trial for search in searches for trial in search.trials):
        ids = [e.run_id for e in trial.runs]
        accuracy, early = float(last.reindex(ids).fillna(0.0).mean()), len(stopped & set(ids))
        trial.score = Score(len(ids) - early if accuracy else 0, accuracy, early)


def _write(study: StudyFile, searches: list[Search]) -> None:
    """`selected.yaml`: the chosen settings, and as comments every trial and what is missing."""
    seeds = ", ".join(map(str, study.tune.seeds))
    more = ", ".join(map(str, study.tune.confirm_seeds))
    most = max(len(search.trials) for search in searches)
    lines = [
        f"# Chosen by `fedsim sweep {study.source} --tune`: mean accuracy on held-out client data",
        f"# of the last round, over all partitions and the seeds {seeds}. No test data was used.",
    ]
    for search in searches:
        lines.append(f"# {search.name}: {len(search.trials)} trials")
        for trial in sorted(search.trials, key=lambda t: (t.confirmed, t.score), reverse=True):
            on = f"  (on {more} as well)" if trial.confirmed else ""
            on += "  (stopped early)" if trial.score.stopped else ""
            lines.append(f"#   {100 * trial.score.accuracy:6.2f} %  {json.dumps(trial.point)}{on}")
        chosen = search.best()
        edges = [key for point in search.further() for key in point if point[key] != chosen[key]]
        lines += [f"#   {key} is still at the edge of its range: widen it" for key in edges]
        if len(search.trials) < most:
            lines.append("#   fewer trials than others: its ranges have no values left to try")
    chosen = {search.name: search.best() for search in searches}
    body = "\n".join(lines) + "\n" + yaml.safe_dump(chosen, sort_keys=False)
    path = study.folder / "selected.yaml"
    path.write_text(body, encoding="utf-8")
    Copy(study.folder).push()
    typer.echo(body)
    where = url_of(study.folder) or study.folder
    typer.echo(
        f"written to {where}/{path.name}; put these settings under `methods` for the final runs"
    )
