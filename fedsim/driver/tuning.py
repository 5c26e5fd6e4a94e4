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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import typer
import yaml

from fedsim.config import Experiment
from fedsim.config.study import EarlyStopping, Study
from fedsim.errors import ConfigError, ExecutionError, did_you_mean
from fedsim.methods import check_options, method_class
from fedsim.storage.remote import Copy, url_of

Point = dict[str, Any]
"""Dotted settings of one trial."""
Axes = dict[str, list[Any]]
"""Dotted settings -> the values they go through."""

_FINEST = 1.1


class Score(NamedTuple):
    """What a trial is chosen by: how many of its runs went on to the end, then their accuracy."""

    whole: int
    """Runs that were not stopped early; 0 for a trial whose runs have all failed."""
    accuracy: float
    """Mean over its runs, in their last rounds; those that failed count as 0."""
    stopped: int = 0
    """Runs that were."""


def tune_study(
    study: Study,
    known_methods: Iterable[str],
    execute: Callable[[list[Experiment], EarlyStopping | None], None],
    dry_run: bool = False,
) -> dict[str, Point]:
    """Run the study's `tune` section and choose each method's settings.

    Args:
        study: With a `tune.grid`.
        known_methods: Names that `use` may take.
        execute: Runs experiments to their end, or to where early stopping ends them.
        dry_run: Only hand over the first trials; choose nothing.

    Returns:
        The chosen settings per method; also printed, and written to `<study>/selected.yaml`.

    Raises:
        ConfigError: If the grid is missing, unequal, or tunes seeds of the final tables.
        ExecutionError: If no trial of a method finished.
    """
    known = tuple(known_methods)
    axes = {name: {k: _in_order(v) for k, v in g.items()} for name, g in study.tune.grid.items()}
    points = {name: _added([], _product(grid)) for name, grid in axes.items()}
    _check(study, points)
    trials: dict[str, list[list[Experiment]]] = {name: [] for name in points}
    for extension in itertools.count():
        new: list[Experiment] = []
        for name in points:
            more = [_runs(study, name, p, known) for p in points[name][len(trials[name]) :]]
            trials[name] += more
            new += itertools.chain.from_iterable(more)
        execute(new, study.tune.early_stopping)
        if dry_run:
            typer.echo(f"ranges with the best at an edge: up to {study.tune.extensions} times more")
            return {}
        scores = _scores(study, trials)
        chosen = {name: _best(name, points[name], scores[name]) for name in points}
        further = {name: _further(study, name, points[name], chosen[name], known) for name in axes}
        if not any(further.values()) or extension == study.tune.extensions:
            break
        points = {name: _added(points[name], further[name]) for name in points}
        # Everyone gets as many trials: what one range grows by, the others spend near their best.
        most = max(map(len, points.values()))
        for name in points:
            points[name] = _refined(study, name, points[name], chosen[name], most, known)
    leaders = {name: _leaders(study, scores[name]) for name in points}
    if study.tune.confirm_seeds:
        again = []
        for name, places in leaders.items():
            for place in places:
                runs = _runs(study, name, points[name][place], known, study.tune.confirm_seeds)
                trials[name][place] += runs
                again += runs
        execute(again, None)
        scores = _scores(study, trials)
        chosen = {
            name: _best(name, [points[name][i] for i in led], [scores[name][i] for i in led])
            for name, led in leaders.items()
        }
        further = {name: _further(study, name, points[name], chosen[name], known) for name in axes}
    edges = {
        name: [key for p in further[name] for key in p if p[key] != chosen[name][key]]
        for name in axes
    }
    _write(study, points, scores, leaders, chosen, edges)
    return chosen


def extend(points: list[Point], best: Point) -> Iterator[Point]:
    """The best point with one value further, for every numeric setting that is at its edge.

    >>> tried = [{"train.lr": lr} for lr in (0.01, 0.1)]
    >>> list(extend(tried, {"train.lr": 0.1}))
    [{'train.lr': 1.0}]
    >>> list(extend([*tried, {"train.lr": 1.0}], {"train.lr": 0.1}))
    []
    """
    for key in best:
        values = sorted({p[key] for p in points}) if _numeric(points, key) else []
        if len(values) < 2 or values[0] <= 0:
            continue
        kind = _kind(values)
        if best[key] == values[-1]:
            new = kind(_round(values[-1] * values[-1] / values[-2]))
            if new > values[-1]:
                yield best | {key: new}
        elif best[key] == values[0]:
            new = kind(_round(values[0] * values[0] / values[1]))
            if 0 < new < values[0]:
                yield best | {key: new}


def refine(points: list[Point], best: Point) -> Iterator[Point]:
    """Points between the best value of a numeric setting and its neighbours, widest gap first.

    Values closer than `_FINEST` are told apart by chance alone and are left out.

    >>> tried = [{"train.lr": lr} for lr in (0.01, 0.1, 1.0)]
    >>> list(itertools.islice(refine(tried, {"train.lr": 0.1}), 3))
    [{'train.lr': 0.316}, {'train.lr': 0.0316}, {'train.lr': 0.178}]
    """
    axes = {key: sorted({p[key] for p in points}) for key in best if _numeric(points, key)}
    grew = True
    while grew:
        grew = False
        for key, values in axes.items():
            at, kind = values.index(best[key]), _kind(values)
            gaps = list(itertools.pairwise(values[max(0, at - 1) : at + 2]))[::-1]
            for a, b in sorted(gaps, key=lambda gap: -_round(gap[1] / gap[0]) if gap[0] > 0 else 0):
                middle = kind(_round((a * b) ** 0.5 if a > 0 else (a + b) / 2))
                if a < middle < b and middle >= a * _FINEST:
                    grew = True
                    yield best | {key: middle}
                    axes[key] = sorted({*axes[key], middle})


def _in_order(values: Iterable[Any]) -> list[Any]:
    found = list(values)
    return sorted(found) if all(map(_is_number, found)) else found


def _product(axes: Axes) -> Iterator[Point]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _added(points: list[Point], more: Iterable[Point]) -> list[Point]:
    return points + [point for point in more if point not in points]


def _numeric(points: list[Point], key: str) -> bool:
    return all(_is_number(point[key]) for point in points)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(values: list[Any]) -> Callable[[float], float]:
    return int if all(isinstance(value, int) for value in values) else float


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _further(
    study: Study, name: str, points: list[Point], best: Point, known: tuple[str, ...]
) -> list[Point]:
    """`extend`, without values that the configuration refuses."""
    return [p for p in extend(points, best) if _allowed(study, name, p, known)]


def _refined(
    study: Study, name: str, points: list[Point], best: Point, most: int, known: tuple[str, ...]
) -> list[Point]:
    """Points of a method, up to as many as the others have."""
    found = list(points)
    for point in refine(points, best):
        if len(found) >= most:
            break
        if point not in found and _allowed(study, name, point, known):
            found.append(point)
    return found


def _allowed(study: Study, name: str, point: Point, known: tuple[str, ...]) -> bool:
    try:
        for experiment in _runs(study, name, point, known):
            check_options(experiment, method_class(experiment.use))
    except ConfigError:
        return False
    return True


def _runs(
    study: Study,
    name: str,
    point: Point,
    known: tuple[str, ...],
    seeds: tuple[int, ...] | None = None,
) -> list[Experiment]:
    """One trial: its runs on every partition and on these seeds, or those that all trials get."""
    seeds = study.tune.seeds if seeds is None else seeds
    return study.resolve([(name, point, seed, "tune") for seed in seeds], known)


def _leaders(study: Study, scores: list[Score]) -> list[int]:
    """Places of the trials to confirm, the best first; none without seeds for that."""
    found = [place for place, score in enumerate(scores) if score.accuracy > 0]
    ranked = sorted(found, key=lambda place: scores[place], reverse=True)
    return ranked[: study.tune.confirm_best] if study.tune.confirm_seeds else []


def _check(study: Study, points: dict[str, list[Point]]) -> None:
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


def _scores(study: Study, trials: dict[str, list[list[Experiment]]]) -> dict[str, list[Score]]:
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
    study: Study,
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
