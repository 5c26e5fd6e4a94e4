"""Choosing hyper-parameters: the same number of trials for every method, on held-out client data.

Trials run on seeds that the final tables never use, as runs with `phase=tune`; their `accuracy` is
that of `client_holdout`, and no model sees test data. A trial that diverges counts as 0. A best
value on the edge of a numeric range is followed one value further, everything else held; methods
with fewer such trials get as many more around their own best. With `confirm_seeds`, every method's
best trials are run on these as well and the choice is made among them. All trials stay in the
tables.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import NamedTuple

import typer
import yaml

from fedsim.config import Experiment
from fedsim.config.study_file import StudyFile
from fedsim.config.tune import EarlyStopping
from fedsim.driver.ranges import Point, added, extend, in_order, product, refine
from fedsim.errors import ConfigError, ExecutionError, did_you_mean
from fedsim.methods import METHODS, check_options, method_class
from fedsim.storage.remote import Copy, url_of


class Score(NamedTuple):
    """What a trial is chosen by: how many of its runs went on to the end, then their accuracy."""

    whole: int
    """Runs that were not stopped early; 0 for a trial whose runs have all failed."""
    accuracy: float
    """Mean over its runs, in their last rounds; those that failed count as 0."""
    stopped: int = 0
    """Runs that were."""


def first_trials(study: StudyFile) -> list[Experiment]:
    """What the study's `tune.grid` describes, before any range is extended.

    Raises:
        ConfigError: If the grid is missing, unequal, or tunes seeds of the final tables.
    """
    points = _planned(study)
    return [e for name in points for point in points[name] for e in _runs(study, name, point)]


def tune_study(
    study: StudyFile, execute: Callable[[list[Experiment], EarlyStopping | None], None]
) -> dict[str, Point]:
    """Run the study's `tune` section and choose each method's settings.

    Args:
        study: With a `tune.grid`.
        execute: Runs experiments to their end, or to where early stopping ends them.

    Returns:
        The chosen settings per method; also printed, and written to `<study>/selected.yaml`.

    Raises:
        ConfigError: If the grid is missing, unequal, or tunes seeds of the final tables.
        ExecutionError: If no trial of a method finished.
    """
    points = _planned(study)
    trials: dict[str, list[list[Experiment]]] = {name: [] for name in points}
    for extension in itertools.count():
        new: list[Experiment] = []
        for name in points:
            more = [_runs(study, name, p) for p in points[name][len(trials[name]) :]]
            trials[name] += more
            new += itertools.chain.from_iterable(more)
        execute(new, study.tune.early_stopping)
        scores = _scores(study, trials)
        chosen = {name: _best(name, points[name], scores[name]) for name in points}
        further = {name: _further(study, name, points[name], chosen[name]) for name in points}
        if not any(further.values()) or extension == study.tune.extensions:
            break
        points = {name: added(points[name], further[name]) for name in points}
        # Everyone gets as many trials: what one range grows by, the others spend near their best.
        most = max(map(len, points.values()))
        for name in points:
            points[name] = _refined(study, name, points[name], chosen[name], most)
    leaders = {name: _leaders(study, scores[name]) for name in points}
    if study.tune.confirm_seeds:
        again = []
        for name, places in leaders.items():
            for place in places:
                runs = _runs(study, name, points[name][place], study.tune.confirm_seeds)
                trials[name][place] += runs
                again += runs
        execute(again, None)
        scores = _scores(study, trials)
        chosen = {
            name: _best(name, [points[name][i] for i in led], [scores[name][i] for i in led])
            for name, led in leaders.items()
        }
        further = {name: _further(study, name, points[name], chosen[name]) for name in points}
    edges = {
        name: [key for p in further[name] for key in p if p[key] != chosen[name][key]]
        for name in points
    }
    _write(study, points, scores, leaders, chosen, edges)
    return chosen


def _planned(study: StudyFile) -> dict[str, list[Point]]:
    """The points of every method's grid, checked."""
    grids = {name: {k: in_order(v) for k, v in g.items()} for name, g in study.tune.grid.items()}
    points = {name: added([], product(grid)) for name, grid in grids.items()}
    _check(study, points)
    return points


def _further(study: StudyFile, name: str, points: list[Point], best: Point) -> list[Point]:
    """`extend`, without values that the configuration refuses."""
    return [p for p in extend(points, best) if _allowed(study, name, p)]


def _refined(
    study: StudyFile, name: str, points: list[Point], best: Point, most: int
) -> list[Point]:
    """Points of a method, up to as many as the others have."""
    found = list(points)
    for point in refine(points, best):
        if len(found) >= most:
            break
        if point not in found and _allowed(study, name, point):
            found.append(point)
    return found


def _allowed(study: StudyFile, name: str, point: Point) -> bool:
    try:
        for experiment in _runs(study, name, point):
            check_options(experiment.for_method(), method_class(experiment.use))
    except ConfigError:
        return False
    return True


def _runs(
    study: StudyFile, name: str, point: Point, seeds: tuple[int, ...] | None = None
) -> list[Experiment]:
    """One trial: its runs on every partition and on these seeds, or those that all trials get."""
    seeds = study.tune.seeds if seeds is None else seeds
    return study.resolve([(name, point, seed, "tune") for seed in seeds], METHODS)


def _leaders(study: StudyFile, scores: list[Score]) -> list[int]:
    """Places of the trials to confirm, the best first; none without seeds for that."""
    found = [place for place, score in enumerate(scores) if score.accuracy > 0]
    ranked = sorted(found, key=lambda place: scores[place], reverse=True)
    return ranked[: study.tune.confirm_best] if study.tune.confirm_seeds else []


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


def _scores(study: StudyFile, trials: dict[str, list[list[Experiment]]]) -> dict[str, list[Score]]:
    """Mean held-out accuracy of the last round of every trial; runs that failed count as 0."""
    from fedsim.results.study import load

    tables = load(study.folder)
    status = tables.read("runs", ["run_id", "status"]).set_index("run_id").status
    stopped = set(status.index[status == "stopped"]) if study.tune.early_stopping else set()
    rounds = tables.read("rounds", ["run_id", "round", "accuracy"]).sort_values("round")
    rounds = rounds[rounds.run_id.isin({*status.index[status == "finished"], *stopped})]
    last = rounds.groupby("run_id").accuracy.last()

    def score(runs: list[Experiment]) -> Score:
        ids = [e.run_id for e in runs]
        accuracy, early = float(last.reindex(ids).fillna(0.0).mean()), len(stopped & set(ids))
        return Score(len(ids) - early if accuracy else 0, accuracy, early)

    return {name: [score(runs) for runs in points] for name, points in trials.items()}


def _best(name: str, points: list[Point], scores: list[Score]) -> Point:
    if not any(score.accuracy > 0 for score in scores):
        raise ExecutionError(
            f"tuning: no trial of {name} finished; the reasons are in the column `error` of the "
            f"table runs, and above"
        )
    return points[scores.index(max(scores))]


def _write(
    study: StudyFile,
    points: dict[str, list[Point]],
    scores: dict[str, list[Score]],
    leaders: dict[str, list[int]],
    chosen: dict[str, Point],
    edges: dict[str, list[str]],
) -> None:
    """`selected.yaml`: the chosen settings, and as comments every trial and what is wanting."""
    seeds = ", ".join(map(str, study.tune.seeds))
    more = ", ".join(map(str, study.tune.confirm_seeds))
    lines = [
        f"# Chosen by `fedsim sweep {study.source} --tune`: mean accuracy on held-out client data",
        f"# of the last round, over all partitions and the seeds {seeds}. No test data was used.",
    ]
    for name in chosen:
        led, own = leaders[name], scores[name]
        lines.append(f"# {name}: {len(own)} trials")
        ranked = sorted(range(len(own)), key=lambda place: (place in led, own[place]), reverse=True)
        for place in ranked:
            on = f"  (on {more} as well)" if place in led else ""
            on += "  (stopped early)" if own[place].stopped else ""
            score = 100 * own[place].accuracy
            lines.append(f"#   {score:6.2f} %  {json.dumps(points[name][place])}{on}")
        lines += [f"#   {key} is still at the edge of its range: widen it" for key in edges[name]]
        if len(points[name]) < max(map(len, points.values())):
            lines.append("#   fewer trials than others: its ranges have no values left to try")
    body = "\n".join(lines) + "\n" + yaml.safe_dump(chosen, sort_keys=False)
    path = study.folder / "selected.yaml"
    path.write_text(body, encoding="utf-8")
    Copy(study.folder).push()
    typer.echo(body)
    where = url_of(study.folder) or study.folder
    typer.echo(
        f"written to {where}/{path.name}; put these settings under `methods` for the final runs"
    )
