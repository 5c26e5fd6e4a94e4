"""Choosing hyper-parameters: the same number of trials for every method, on held-out client data.

Trials run on seeds that the final tables never use, as runs with `phase=tune`; their `accuracy` is
that of `client_holdout`, and no model sees test data. A trial that diverges counts as 0. An optimum on the edge of a numeric range
extends the range. All trials stay in the tables.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import typer
import yaml

from fedsim.config import Experiment
from fedsim.errors import ConfigError, ExecutionError
from fedsim.study import Study

Point = dict[str, Any]
Axes = dict[str, list[Any]]


def tune_study(
    study: Study, known_methods: Iterable[str], execute: Callable[[list[Experiment]], None]
) -> dict[str, Point]:
    """Run the study's `tune` section and choose each method's settings.

    Args:
        study: With a `tune.grid`.
        known_methods: Names that `use` may take.
        execute: Runs experiments to their end.

    Returns:
        The chosen settings per method; also printed, and written to `<study>/selected.yaml`.

    Raises:
        ConfigError: If the grid is missing, unequal, or tunes seeds of the final tables.
        ExecutionError: If no trial of a method finished.
    """
    known = tuple(known_methods)
    grids = {name: {k: list(v) for k, v in axes.items()} for name, axes in study.tune.grid.items()}
    _check(study, grids)
    for _ in range(study.tune.extensions + 1):
        experiments = _trials(study, grids, known)
        execute([e for trial in experiments.values() for e in trial])
        scores = _scores(study, experiments)
        chosen = {name: _best(scores, name) for name in grids}
        grown = {name: extend(axes, chosen[name]) for name, axes in grids.items()}
        if grown == grids:
            break
        # Everyone gets as many trials: a range that grows for one grows for all.
        widest = max(_size(axes) for axes in grown.values())
        grids = {name: _widen(axes, widest) for name, axes in grown.items()}
    _write(study, chosen, scores)
    return chosen


def extend(axes: Axes, best: Point) -> Axes:
    """The axes, with one more value wherever the best is at the edge of a numeric range.

    >>> extend({"train.lr": [0.01, 0.1]}, {"train.lr": 0.1})
    {'train.lr': [0.01, 0.1, 1.0]}
    >>> extend({"train.lr": [0.01, 0.1, 1.0]}, {"train.lr": 0.1})
    {'train.lr': [0.01, 0.1, 1.0]}
    """
    grown = {}
    for key, values in axes.items():
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        ordered = sorted(values) if numeric else list(values)
        if numeric and len(ordered) > 1 and min(ordered) > 0:
            kind = int if all(isinstance(v, int) for v in ordered) else float
            if best[key] == ordered[-1]:
                ordered.append(kind(_round(ordered[-1] * ordered[-1] / ordered[-2])))
            elif best[key] == ordered[0]:
                lower = kind(_round(ordered[0] * ordered[0] / ordered[1]))
                ordered = [lower, *ordered] if lower not in (0, ordered[0]) else ordered
        grown[key] = ordered
    return grown


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _widen(axes: Axes, size: int) -> Axes:
    """Values added in the middle of the first numeric axis until the grid is large enough."""
    axes = {k: list(v) for k, v in axes.items()}
    for key, values in axes.items():
        numbers = [v for v in values if isinstance(v, float)]
        if len(numbers) < 2 or len(numbers) != len(values):
            continue
        while _size(axes) < size:
            values.sort()
            gaps = [b / a for a, b in itertools.pairwise(values)]
            at = gaps.index(max(gaps))
            values.insert(at + 1, _round((values[at] * values[at + 1]) ** 0.5))
        break
    return axes


def _size(axes: Axes) -> int:
    size = 1
    for values in axes.values():
        size *= len(values)
    return size


def _check(study: Study, grids: dict[str, Axes]) -> None:
    problems = []
    if not grids:
        problems.append("there is nothing to tune: add tune.grid")
    for name in grids:
        if name not in study.methods:
            problems.append(f"tune.grid.{name}: the study has no such method")
    sizes = {name: _size(axes) for name, axes in grids.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        problems.append(f"tune.grid: every method gets the same number of trials, not {listed}")
    shared = set(study.seeds) & set(study.tune.seeds)
    if shared:
        problems.append(f"tune.seeds: {sorted(shared)} are seeds of the final tables; choose others")
    if problems:
        raise ConfigError([f"{study.source}: {problem}" for problem in problems])


def _trials(
    study: Study, grids: dict[str, Axes], known: tuple[str, ...]
) -> dict[tuple[str, str], list[Experiment]]:
    """Per method and point, its runs on every partition and tuning seed."""
    found = {}
    for name, axes in grids.items():
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            runs = [(name, point, seed, "tune") for seed in study.tune.seeds]
            found[name, json.dumps(point)] = study.resolve(runs, known)
    return found


def _scores(
    study: Study, experiments: dict[tuple[str, str], list[Experiment]]
) -> dict[tuple[str, str], float]:
    """Mean held-out accuracy of the last round, per method and point; 0 for runs that failed."""
    from fedsim.results.tables import load

    tables = load(study.folder)
    finished = tables.runs.run_id[tables.runs.status == "finished"]
    rounds = tables.rounds[tables.rounds.run_id.isin(finished)].sort_values("round")
    last = rounds.groupby("run_id").accuracy.last()
    return {
        key: float(last.reindex([e.run_id for e in runs]).fillna(0.0).mean())
        for key, runs in experiments.items()
    }


def _best(scores: dict[tuple[str, str], float], name: str) -> Point:
    mine = {point: score for (method, point), score in scores.items() if method == name}
    if not any(mine.values()):
        raise ExecutionError(f"no trial of {name} finished; see the events table of the study")
    best: Point = json.loads(max(mine, key=lambda point: mine[point]))
    return best


def _write(
    study: Study, chosen: dict[str, Point], scores: dict[tuple[str, str], float]
) -> None:
    lines = [
        f"# Chosen by `fedsim sweep {study.source} --tune` on held-out client data, seeds "
        f"{list(study.tune.seeds)}."
    ]
    for name, point in chosen.items():
        mine = {p: s for (method, p), s in scores.items() if method == name}
        lines.append(f"# {name}: {len(mine)} trials per partition and seed")
        for text, score in sorted(mine.items(), key=lambda item: -item[1]):
            lines.append(f"#   {100 * score:6.2f} %  {text}")
    body = "\n".join(lines) + "\n" + yaml.safe_dump(chosen, sort_keys=False)
    path = study.folder / "selected.yaml"
    path.write_text(body)
    typer.echo(body)
    typer.echo(f"written to {path}; put these settings under `methods` for the final runs")
