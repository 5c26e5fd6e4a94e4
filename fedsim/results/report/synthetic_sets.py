"""Synthetic sets in a report: their quality in numbers, of whole sets and class by class."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from fedsim.errors import ResultsError
from fedsim.results.analysis.named_runs import final_runs
from fedsim.results.report.grid import Grid
from fedsim.results.report.numbers import NONE
from fedsim.results.study import NearestReal, Study


class _Measure(NamedTuple):
    column: str
    title: str
    reading: str
    form: str = ".3f"
    factor: float = 1.0


_PERCENT = (".1f", 100.0)
_MEASURES = (
    _Measure("num_images", "images", "in a set", ".0f"),
    _Measure("drawn_agreement", "CLIP agreement as drawn, %",
             "the same of all candidates, before the filter chose", *_PERCENT),
    _Measure("clip_agreement", "CLIP agreement, %",
             "images that the encoder takes for their class; 100 is all of them", *_PERCENT),
    _Measure("clip_similarity", "CLIP score", "mean cosine to the class text; higher is closer"),
    _Measure("diversity", "diversity",
             "mean cosine distance of two images of a class; 0 is one image again and again"),
    _Measure("fid", "FID", "distance to the training images; 0 is none", ".3g"),
    _Measure("kid", "KID × 1000",
             "the same without bias for small sets; about 0 for the same law", ".3g", 1000.0),
    _Measure("precision", "precision, %",
             "images that could be training images; low means unreal ones", *_PERCENT),
    _Measure("recall", "recall, %",
             "training images that could be synthetic; low means sorts are missing", *_PERCENT),
    _Measure("density", "density", "precision that outliers do not flatter; 1 is as dense as real"),
    _Measure("coverage", "coverage, %",
             "training images with a synthetic one beside them; a small set covers few", *_PERCENT),
    _Measure("real_similarity", "similarity of means",
             "cosine of mean synthetic and mean training image"),
    _Measure("nearest_similarity", "nearest similarity",
             "mean cosine to the nearest training image"),
    _Measure("memorisation", "memorisation",
             "chance to be nearer to training images than a validation image is: 0.5 as near, "
             "towards 1 copies, towards 0 images of another kind"),
    _Measure("cache_accuracy", "untrained cache, %",
             "validation accuracy of text plus the cache before any training", *_PERCENT),
    _Measure("gain_per_image", "gain per image, points",
             "what that gains over text alone, divided by the images", "+.3f", 100.0),
    _Measure("match_loss_before", "matching loss before", "before distillation"),
    _Measure("match_loss_after", "matching loss after", "after distillation"),
    _Measure("match_loss_noise", "matching loss of noise", "noise with the same labels"),
    _Measure("uninformative", "uninformative sets, %",
             "sets that noise with the same labels matches: clients that say little", *_PERCENT),
    _Measure("num_classes", "classes", "in a set", ".0f"),
    _Measure("local_classes", "local classes", "that its client trains on", ".1f"),
    _Measure("student_lr", "student's step size", "as learned while matching", ".3g"),
)  # fmt: skip


def synthetic_quality(study: Study) -> Grid:
    """One row per measure, one column per group of methods whose sets are the same.

    Means over sets and, where there are several, their standard deviation. Of sets made anew in
    every round, a run's last one counts. Measures that no set has are left out.
    """
    runs = final_runs(study)[["run_id", "method", "dataset", "synthetic_set"]]
    table = _whole_sets(study).merge(runs, on="run_id")
    columns: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for (dataset, method), group in table.groupby(["dataset", "method"], sort=False):
        # A set serves all partitions, but its worth depends on the cache's settings. The measures
        # of clients' sets together are no further set.
        is_set = group["num_images"].notna()
        named = is_set & (group["client_id"] < 0) & group["synthetic_set"].notna()
        again = group.duplicated(["synthetic_set", "cache_accuracy", "kid"])
        distinct = group[~(named & again)]
        count = group.loc[named, "synthetic_set"].nunique() + int((is_set & ~named).sum())
        cells = [str(count), *(_cell(distinct, measure) for measure in _MEASURES)]
        columns.setdefault((dataset, *cells), (dataset, []))[1].append(method)
    if not columns:
        return Grid("", [], [])
    several = len({dataset for dataset, _ in columns.values()}) > 1
    header = ["measure", "how to read it"]
    for dataset, methods in columns.values():
        names = ", ".join(methods[:3]) + (f" and {len(methods) - 3} more" if methods[3:] else "")
        header.append(f"{dataset}: {names}" if several else names)
    titles = [("sets", ""), *((measure.title, measure.reading) for measure in _MEASURES)]
    rows = []
    for place, (title, reading) in enumerate(titles, 1):
        cells = [key[place] for key in columns]
        if any(cell != NONE for cell in cells):
            rows.append([title, reading, *cells])
    drawn, kept = (next((row for row in rows if row[0] == m.title), []) for m in _MEASURES[1:3])
    if drawn[2:] == kept[2:]:  # nothing was filtered
        rows = [row for row in rows if row is not drawn]
    return Grid("", header, rows, names=2)


def class_quality(study: Study, fingerprint: str) -> pd.DataFrame:
    """The measures of one set by class: means over the runs that used it, indexed by class name."""
    runs = study.runs.loc[study.runs["synthetic_set"] == fingerprint, "run_id"]
    rows = study.synthetic
    rows = rows[rows["run_id"].isin(runs) & rows["class_name"].notna() & rows["client_id"].isna()]
    rows = rows[rows["round"] == 0]
    return rows.groupby("class_name")[[measure.column for measure in _MEASURES]].mean()


def set_methods(study: Study, fingerprint: str) -> list[str]:
    """The methods that used a set, in the order of the study."""
    runs = final_runs(study)
    return list(dict.fromkeys(runs.loc[runs["synthetic_set"] == fingerprint, "method"]))


def set_neighbours(study: Study, fingerprint: str) -> NearestReal | None:
    """The nearest training images of a set, from the first run that knows them."""
    for run_id in study.runs.loc[study.runs["synthetic_set"] == fingerprint, "run_id"]:
        try:
            return study.nearest_real(run_id)
        except ResultsError:
            continue
    return None


def first_makers(study: Study) -> dict[str, tuple[str, str, list[int]]]:
    """Methods whose server holds synthetic images in its rounds, each with a run that has them.

    Returns:
        Method -> id of its run on the first partition with the lowest seed, how that run is called
        (partition and seed), and the rounds that have images.
    """
    runs, kept = final_runs(study), study.synthetic_rounds()
    runs = runs[runs["run_id"].isin([run for run, rounds in kept.items() if rounds])]
    first = runs.drop_duplicates("method")  # runs are sorted by partition and seed
    return {
        run.method: (run.run_id, f"{run.partition}, seed {run.seed}", kept[run.run_id])
        for run in first.itertuples()
    }


def _whole_sets(study: Study) -> pd.DataFrame:
    """One row per run and client, of the last round with a set; class means where none is whole."""
    columns = [measure.column for measure in _MEASURES]
    keys = ["run_id", "client_id"]
    rows = study.synthetic
    rows = rows[rows["round"] == rows.groupby("run_id")["round"].transform("max")]
    rows = rows.assign(client_id=rows["client_id"].astype("float64").fillna(-1))
    by_class = rows[rows["class_name"].notna()].groupby(keys, sort=False)
    means = by_class[columns].mean().assign(num_images=by_class["num_images"].sum())
    whole = rows[rows["class_name"].isna()].set_index(keys)[columns]
    rest = means.loc[means.index.difference(whole.index)]
    return whole.combine_first(rest).reset_index() if len(rest) else whole.reset_index()


def _cell(group: pd.DataFrame, measure: _Measure) -> str:
    values = measure.factor * group[measure.column].dropna().astype("float64")
    if values.empty:
        return NONE
    text = format(values.mean(), measure.form)
    spread = values.std()
    if len(values) < 2 or math.isnan(spread) or spread == 0:
        return text
    return f"{text} ± {format(spread, measure.form.removeprefix('+'))}"
