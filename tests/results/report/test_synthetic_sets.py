"""What the report says of synthetic sets: which numbers, whose, and beside which images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.errors import ResultsError
from fedsim.results.report.gallery import (
    BARS,
    drawn_bars,
    nearest_pairs,
    sets_beside,
    synthetic_gallery,
)
from fedsim.results.report.page import write_report
from fedsim.results.report.synthetic_sets import (
    _MEASURES,
    class_quality,
    set_methods,
    synthetic_quality,
)
from fedsim.results.study import NearestReal, Study, SyntheticImages, load
from fedsim.results.tables.schema import TABLES
from fedsim.results.tables.writer import TableWriter

MakeRun = Callable[..., str]


def rows(agreement: float, whole: bool = True, **more: Any) -> list[dict[str, Any]]:
    """A set of two classes, the second without a value for most measures."""
    both = {"round": 0, "num_images": 4, **more}
    found: list[dict[str, Any]] = [
        {**both, "class_name": "cat", "clip_agreement": agreement, "memorisation": 0.9},
        {**both, "class_name": "dog", "clip_agreement": agreement - 0.2},
    ]
    if whole:
        found += [{**both, "class_name": None, "num_images": 8, "clip_agreement": agreement - 0.1}]
        found[-1] |= {"fid": 12.3456, "kid": -0.00012, "gain_per_image": 0.0002}
    return found


def cells(study: Study) -> dict[str, list[str]]:
    grid = synthetic_quality(study)
    assert {len(row) for row in grid.rows} == {len(grid.header)}
    return {row[0]: row[2:] for row in grid.rows}


def test_every_measure_is_shown():
    named = {measure.column for measure in _MEASURES}
    columns = {c.name for c in TABLES["synthetic"].columns if c.kind == "result"} - {"label"}
    assert named == columns
    assert set(BARS) <= named


def test_the_numbers_are_those_of_whole_sets(tmp_path: Path, make_run: MakeRun):
    for partition, alpha in (("iid", None), ("dirichlet", 0.5)):  # one set serves both
        make_run(tmp_path, "cachefl", partition, alpha, 0, synthetic=rows(0.8), synthetic_set="a")
    make_run(tmp_path, "cachefl", "iid", None, 1, synthetic=rows(0.6), synthetic_set="b")
    make_run(tmp_path, "fedavg", "iid", None, 0)
    study = load(tmp_path)
    found = cells(study)
    assert found["sets"] == ["2"]
    assert found["images"] == ["8"]
    assert found["CLIP agreement, %"] == [f"60.0 ± {100 * np.std([0.7, 0.5], ddof=1):.1f}"]
    assert found["FID"] == ["12.3"]
    assert found["KID × 1000"] == ["-0.12"]
    assert found["gain per image, points"] == ["+0.020"]
    assert "recall, %" not in found  # nobody measured it
    assert set_methods(study, "a") == ["cachefl"]


def test_methods_with_the_same_sets_share_a_column(tmp_path: Path, make_run: MakeRun):
    for method in ("cachefl", "m1", "m2", "m3"):
        make_run(tmp_path, method, "iid", None, 0, synthetic=rows(0.8), synthetic_set="a")
    worth = [row | {"cache_accuracy": 0.5} for row in rows(0.8)]  # other settings of the cache
    make_run(tmp_path, "tuned", "iid", None, 0, synthetic=worth, synthetic_set="a")
    study = load(tmp_path)
    header = synthetic_quality(study).header
    assert header == ["measure", "how to read it", "cachefl, m1, m2 and 1 more", "tuned"]
    assert cells(study)["untrained cache, %"] == ["-", "50.0"]
    make_run(tmp_path, "cachefl", "iid", None, 0, dataset="d2", synthetic=rows(0.1))
    assert "d2: cachefl" in synthetic_quality(load(tmp_path)).header


def test_distilled_sets_are_those_of_the_last_round(tmp_path: Path, make_run: MakeRun):
    made = [
        row
        for round, client, agreement in ((1, 0, 0.3), (2, 0, 0.4), (2, 1, 0.8))
        for row in rows(agreement, whole=False, round=round, client_id=client)
    ]
    make_run(tmp_path, "feddgm", "iid", None, 0, synthetic=made)
    found = cells(load(tmp_path))
    assert found["sets"] == ["2"]
    assert found["images"] == ["8"]
    assert found["CLIP agreement, %"] == [f"50.0 ± {100 * np.std([0.3, 0.7], ddof=1):.1f}"]
    assert class_quality(load(tmp_path), "none").empty


def test_agreement_as_drawn_is_shown_where_a_filter_changed_it(tmp_path: Path, make_run: MakeRun):
    same = [row | {"drawn_agreement": row["clip_agreement"]} for row in rows(0.8)]
    make_run(tmp_path / "none", "cachefl", "iid", None, 0, synthetic=same)
    assert "CLIP agreement as drawn, %" not in cells(load(tmp_path / "none"))
    other = [row | {"drawn_agreement": 0.25} for row in rows(0.8)]
    make_run(tmp_path / "some", "cachefl", "iid", None, 0, synthetic=other)
    assert cells(load(tmp_path / "some"))["CLIP agreement as drawn, %"] == ["25.0"]


def test_a_study_without_synthetic_images_says_nothing(tmp_path: Path, make_run: MakeRun):
    make_run(tmp_path, "fedavg", "iid", None, 0)
    assert synthetic_quality(load(tmp_path)).rows == []


def images() -> SyntheticImages:
    pixels = np.zeros((8, 16, 16, 3), np.uint8)
    return SyntheticImages(pixels, np.repeat([0, 1], 4), ["cat", "dog"])


@pytest.fixture
def study(tmp_path: Path, make_run: MakeRun) -> Study:
    make_run(tmp_path, "cachefl", "iid", None, 0, synthetic=rows(0.8), synthetic_set="f00d")
    made = images()
    TableWriter(tmp_path, "r").save_images("f00d", made.images, made.labels, made.classnames)
    return load(tmp_path)


def test_without_an_encoder_there_are_no_bars(study: Study):
    quality = class_quality(study, "f00d") * math.nan
    assert drawn_bars(quality) == []
    assert len(synthetic_gallery(images(), quality).axes) == 1


def test_bars_stand_beside_the_images_of_their_class(study: Study):
    quality = class_quality(study, "f00d")
    assert quality.loc["cat", "clip_agreement"] == 0.8
    assert math.isnan(quality.loc["dog", "memorisation"])
    gallery, *bars = synthetic_gallery(images(), quality).axes
    assert [text.get_text() for text in gallery.get_yticklabels()] == ["cat", "dog"]
    assert [axis.get_title(loc="left") for axis in bars] == ["CLIP\nagreement", "memorisation"]
    for axis in bars:
        assert axis.get_ylim() == gallery.get_ylim()
        assert axis.get_xlim() == (0, 1)
    texts = [[text.get_text() for text in axis.texts] for axis in bars]
    assert texts == [["0.80", "0.60"], ["0.90", "–"]]
    widths = [patch.get_width() for patch in bars[0].patches if patch.get_width() < 1]
    assert widths == pytest.approx([0.8, 0.6])
    middles = {patch.get_y() + patch.get_height() / 2 for patch in bars[0].patches}
    assert sorted(middles) == pytest.approx(list(gallery.get_yticks()))


def test_sets_beside_each_other_share_their_rows():
    whole = images()
    dogs = SyntheticImages(
        whole.images[whole.labels == 1], whole.labels[whole.labels == 1], ["cat", "dog"]
    )
    first, second = sets_beside({"round 1": whole, "round 9": dogs}, per_class=2).axes
    assert [axis.get_title() for axis in (first, second)] == ["round 1", "round 9"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["cat", "dog"]
    left, right = (np.asarray(axis.get_images()[0].get_array()) for axis in (first, second))
    assert left.shape == right.shape
    half = left.shape[0] // 2
    assert np.array_equal(left[half:], right[half:])
    assert (right[: half - 1] == 255).all(), "a class that a set lacks is white"
    assert not np.array_equal(left[:half], right[:half])


def near(pixels: bool = True) -> dict[str, np.ndarray]:
    found = {"rows": np.arange(8) * 5, "similarity": np.linspace(0.2, 0.9, 8)}
    if pixels:
        found |= {"closest": np.array([7, 6]), "pixels": np.full((2, 8, 8, 3), 99, np.uint8)}
    return found


def test_nearest_training_images_are_kept_by_set_and_data(tmp_path: Path, make_run: MakeRun):
    for seed, (run_set, inputs) in enumerate([("f00d", "d0"), ("f00d", "d0"), ("f00d", "d1")]):
        more = {"synthetic_set": run_set, "inputs": inputs}
        run = make_run(tmp_path, "cachefl", "iid", None, seed, **more)
        with TableWriter(tmp_path, run) as writer:
            writer.save_nearest(run_set, inputs, near(pixels=inputs == "d0"))
    make_run(tmp_path, "fedavg", "iid", None, 0)
    runs = load(tmp_path).runs.set_index(["method", "seed"])["run_id"]
    assert len(list((tmp_path / "nearest").iterdir())) == 2
    study = load(tmp_path)
    found = study.nearest_real(runs["cachefl", 1])
    assert found.rows.tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert found.similarity[found.closest].tolist() == pytest.approx([0.9, 0.8])
    assert study.nearest_real(runs["cachefl", 2]).pixels is None
    with pytest.raises(ResultsError, match="has 2 sets or training data: give run_id"):
        study.nearest_real()
    with pytest.raises(ResultsError, match="does not know the nearest training images"):
        study.nearest_real(runs["fedavg", 0])


def test_the_nearest_pairs_are_shown_with_their_cosines(study: Study):
    axis = nearest_pairs(images(), NearestReal(**near())).axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0.90", "0.80"]
    canvas = axis.images[0].get_array()
    assert canvas is not None
    assert (canvas[0, 0] == 0).all()  # synthetic above,
    assert (canvas[-1, 0] == 99).all()  # real below
    (run_id,) = study.runs["run_id"]
    assert "nearest training images" not in write_report(study.path).read_text()
    with TableWriter(study.path, run_id) as writer:
        writer.update_run(inputs="d0")
        writer.save_nearest("f00d", "d0", near())
    assert "Set f00d: nearest training images" in write_report(study.path).read_text()


def test_the_report_shows_both(study: Study):
    page = write_report(study.path).read_text()
    section = page.split("<h2>Synthetic images</h2>")[1].split("</section>")[0]
    for words in (
        "CLIP agreement, %",
        "how to read it",
        "no server would",
        "Set f00d",
        "data:image",
    ):
        assert words in section
    assert 'class="t"' in section
    assert section.index("<table>") < section.index("<img")
