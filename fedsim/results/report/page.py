"""The report: one self-contained page about a study, also while it runs and after a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment

from fedsim.results.analysis.named_runs import CELL, curves, final_runs, final_scores
from fedsim.results.analysis.summary import summarise
from fedsim.results.report import (
    breakdown,
    client_figures,
    cost_sheet,
    facts,
    plots,
    synthetic_sets,
)
from fedsim.results.report.gallery import drawn_bars, nearest_pairs, sets_beside, synthetic_gallery
from fedsim.results.report.grid import Grid, grid_of
from fedsim.results.report.numbers import NONE
from fedsim.results.report.style import data_uri
from fedsim.results.study import Study, load
from fedsim.storage.atomic import whole_file

PLAN = "plan.json"  # the resolved configuration of every run, which `fedsim resume` follows
_MAX_EVENTS = 100
_MAX_GALLERIES = 4
_MAX_COLUMNS = 8
_MAX_ROUNDS = 6


class Picture(NamedTuple):
    """A figure on the page: what it shows, how to read it, and the figure itself."""

    title: str
    caption: str
    uri: str


def write_report(
    study_dir: Path | str, config_path: Path | str | None = None, command: str | None = None
) -> Path:
    """Write `report.html` into a study's folder: one file that needs no other.

    Args:
        study_dir: Folder of the study.
        config_path: The study's YAML file, to say how to reproduce; by default the YAML files and
            the plan in the study's folder.
        command: The command that reproduces the study; by default what the runs recorded.

    Returns:
        The path of the report.

    Raises:
        ResultsError: There is no such study.
    """
    study = load(study_dir)
    template = files("fedsim.results.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    summary, config_files = summarise(study), _config_files(study, config_path)
    differences, shared = facts.settings(study)
    has_clients = not breakdown.client_scores(study).empty
    is_finished = final_runs(study)["status"] == "finished"
    has_split = bool(client_figures.label_counts(study))
    text = page.render(
        name=study.name,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=", ".join(study.runs["fedsim_version"].dropna().unique()),
        headline=facts.headline(summary),
        unfinished=summary.attrs["unfinished"],
        num_runs=len(final_runs(study)),
        facts=facts.facts(study),
        attrs=summary.attrs,
        summaries=facts.summary_grids(summary),
        ranks=facts.ranks(summary),
        beyond=breakdown.beyond_accuracy(study),
        clients=breakdown.client_grids(study),
        client_picture=has_clients and data_uri(client_figures.client_accuracy(study)),
        by_domain=breakdown.breakdown_grids(study, "domain"),
        by_client=_by_client(study),
        by_model=breakdown.breakdown_grids(study, "model"),
        curves=_curves(study),
        by_class=_by_class(study),
        galleries=[*_galleries(study), *_made(study)],
        quality=synthetic_sets.synthetic_quality(study),
        split=has_split and data_uri(client_figures.client_split(study)),
        split_statistics=facts.split_statistics(study),
        times=facts.times(study),
        costs=cost_sheet.cost_grids(cost_sheet.cost_sheet(study)) if is_finished.any() else [],
        costs_note=cost_sheet.NOTE,
        failed=_failed(study),
        events=_events(study),
        num_events=len(study.events),
        differences=differences,
        shared=shared,
        commands=[command] if command else list(study.runs["command"].dropna().unique()),
        config_files=config_files,
        sweep_file=next((file for file in config_files if not file.endswith(".json")), None),
        resume=(study.path / PLAN).is_file(),
        folder=study.path,
    )
    path = study.path / "report.html"
    with whole_file(path) as file:
        file.write(text.encode())
    return path


def _by_client(study: Study) -> list[Grid]:
    """Client by client, if there are few of them."""
    few = bool((final_runs(study)["num_clients"] <= _MAX_COLUMNS).all())
    return breakdown.breakdown_grids(study, "client") if few else []


def _curves(study: Study) -> dict[str, str]:
    """Figures of accuracy as `data:` addresses, by name: those that the study has numbers for."""
    rounds = curves(study)
    found = {}
    if rounds["accuracy"].notna().any() and (rounds["round"] > 0).any():
        found["rounds"] = plots.accuracy_over_rounds(study)
        if (rounds["bytes"] > 0).any():
            found["bytes"] = plots.accuracy_against_bytes(study)
    if any(len(set(group["partition"])) > 1 for group in plots.alpha_groups(study).values()):
        found["alpha"] = plots.accuracy_against_alpha(study)
    return {name: data_uri(figure) for name, figure in found.items()}


def _by_class(study: Study) -> dict[str, str]:
    """Accuracy by class as a figure per data set."""
    scores = final_scores(study, scope="class", split="test")
    return {
        dataset: data_uri(plots.class_accuracy(study, dataset))
        for dataset in dict.fromkeys(scores["dataset"])
    }


def _galleries(study: Study) -> Iterator[Picture]:
    for fingerprint in study.synthetic_sets()[:_MAX_GALLERIES]:
        images = study.synthetic_images(fingerprint)
        methods = synthetic_sets.set_methods(study, fingerprint)
        used = f"Used by {', '.join(methods)}. " if methods else ""
        quality = synthetic_sets.class_quality(study, fingerprint)
        explained = " Bars go from 0 to 1 and are explained above." if drawn_bars(quality) else ""
        yield Picture(
            f"Set {fingerprint}",
            f"{used}The first of {len(images.images)} images, one row per class; a row should look "
            f"like its class and its images should differ from one another.{explained}",
            data_uri(synthetic_gallery(images, quality)),
        )
        nearest = synthetic_sets.set_neighbours(study, fingerprint)
        if nearest is not None and nearest.pixels is not None:
            yield Picture(
                f"Set {fingerprint}: nearest training images",
                "The synthetic images most like any training image, each above that image, with "
                "the cosine of their features. Copies would stand here: the same picture twice.",
                data_uri(nearest_pairs(images, nearest)),
            )


def _made(study: Study) -> Iterator[Picture]:
    """The sets that each method's server held in its rounds, from the first run that has them."""
    for method, (run_id, called, kept) in synthetic_sets.first_makers(study).items():
        rounds = spread(kept, _MAX_ROUNDS)
        sets = {f"round {number}": study.synthetic_images(number, run_id) for number in rounds}
        yield Picture(
            f"Sets of {method}",
            f"What the server trained on in rounds of one run ({called}): the first images of each "
            f"class, a row per class; white where there is none.",
            data_uri(sets_beside(sets)),
        )


def spread(rounds: Sequence[int], most: int) -> list[int]:
    """At most so many of the rounds, evenly spread, with the first and the last.

    >>> spread([1, 2, 3, 4, 5, 6, 7], 3)
    [1, 4, 7]
    >>> spread([2, 4], 3)
    [2, 4]
    """
    if len(rounds) <= most:
        return list(rounds)
    return [rounds[round(place * (len(rounds) - 1) / (most - 1))] for place in range(most)]


def _failed(study: Study) -> Grid:
    runs = final_runs(study)
    failed = runs.loc[runs["error"].notna(), ["method", *CELL, "seed", "status", "error"]]
    return grid_of(failed.astype(str).rename(columns={"error": "message"}), names=6)


def _events(study: Study) -> Grid:
    """The last events, newest first."""
    events = study.events.sort_values("time", ascending=False).head(_MAX_EVENTS)
    texts = {
        "time, UTC": events["time"].dt.strftime("%Y-%m-%d %H:%M:%S").fillna(NONE),
        "run": events["run_id"],
        "round": events["round"].astype("Int64").astype("string").fillna(NONE),
        "client": events["client_id"].astype("Int64").astype("string").fillna(NONE),
        "kind": events["kind"],
        "message": events["message"].fillna(""),
    }
    return grid_of(pd.DataFrame(texts), names=len(texts))


def _config_files(study: Study, config_path: Path | str | None) -> list[str]:
    if config_path is not None:
        return [str(config_path)]
    found = [*sorted(study.path.glob("*.y*ml")), study.path / PLAN]
    return [str(path) for path in found if path.is_file()]
