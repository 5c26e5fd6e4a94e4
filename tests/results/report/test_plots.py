from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from fedsim.results.analysis.named_runs import curves
from fedsim.results.report import client_figures, plots
from fedsim.results.report.gallery import synthetic_gallery
from fedsim.results.report.style import data_uri, legend, method_styles, panels
from fedsim.results.study import Study, SyntheticImages, load

ALL = [
    plots.accuracy_over_rounds,
    plots.accuracy_against_bytes,
    plots.accuracy_against_alpha,
    plots.class_accuracy,
    client_figures.client_split,
]


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def labels(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.legends[0].get_texts()}


def test_curves_have_a_line_per_method_and_a_band(study: Study):
    figure = plots.accuracy_over_rounds(study)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "dirichlet 0.05", "dirichlet 0.5", "iid",
    ]  # fmt: skip
    assert labels(figure) == {"zero_shot", "fedavg", "cachefl", "feddgm", "centralised"}
    axis = figure.axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert len(axis.collections) == 3
    expected = plots.mean_curve(
        curves(study).query("method == 'fedavg' and partition == 'dirichlet 0.05'")
    )
    np.testing.assert_allclose(lines["fedavg"].get_ydata(), 100 * expected["mean"])
    np.testing.assert_allclose(lines["zero_shot"].get_ydata(), [55, 55])


@pytest.mark.parametrize("titles", [["one"], list("abcd")])
def test_a_long_legend_does_not_press_the_panels(titles: list[str]):
    heights = []
    for count in (3, 31):
        figure, axes = panels(titles, "x", "y")
        for number in range(count):
            axes[0].plot([0, 1], label=f"averaged_method_{number}")
        legend(figure)
        figure.draw_without_rendering()
        heights.append(axes[0].get_position().height * figure.get_figheight())
    assert heights[1] == pytest.approx(heights[0], rel=0.15)


def test_bytes_are_on_a_logarithmic_axis_that_starts_after_zero(study: Study):
    figure = plots.accuracy_against_bytes(study)
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    lines = {line.get_label(): line for line in axis.lines}
    assert lines["fedavg"].get_xdata()[0] == 400_000
    assert lines["cachefl"].get_xdata()[0] == 300_000
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    assert 2 <= len(ticks) <= 5
    assert all(text.endswith("B") for text in ticks)


@pytest.mark.parametrize(
    ("low", "high"), [(2.8e6, 2.9e6), (1e3, 1e12), (1, 3), (5e5, 6e5), (900, 1100), (3e13, 9e15)]
)
def test_bytes_have_two_to_five_ticks_inside_the_axis(low: float, high: float):
    ticks = plots.byte_ticks(low, high)
    assert 2 <= len(ticks) <= 5
    assert all(low <= place <= high for place in ticks.values())


def test_iid_stands_right_of_the_largest_alpha(study: Study):
    figure = plots.accuracy_against_alpha(study)
    assert len(figure.axes) == 1
    axis = figure.axes[0]
    ticks = dict(
        zip([t.get_text() for t in axis.get_xticklabels()], axis.get_xticks(), strict=True)
    )
    assert list(ticks) == ["0.05", "0.5", "IID"]
    assert ticks["IID"] > ticks["0.5"]
    assert len(axis.containers) == 5 + 5  # a line over alpha and a point at IID per method


def test_every_class_has_a_row(study: Study):
    figure = plots.class_accuracy(study)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["airplane", "cat", "dog", "ship", "truck"]
    assert len(plots.class_accuracy(study, max_classes=2).axes[0].get_yticks()) == 2


def test_the_split_is_drawn_as_it_is(study: Study):
    counts = client_figures.label_counts(study)
    assert list(counts) == [("shapes", p) for p in ("dirichlet 0.05", "dirichlet 0.5", "iid")]
    figure = client_figures.client_split(study)
    for axis, table in zip(figure.axes, counts.values(), strict=True):
        assert len(axis.collections[0].get_offsets()) == np.count_nonzero(table)
    assert figure.axes[0].get_xticklabels()[0].get_text() == "airplane"


def test_many_clients_become_shades(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0, num_clients=40)
    figure = client_figures.client_split(load(tmp_path))
    assert figure.axes[0].collections[0].get_array().shape == (40, 5)


def test_a_split_needs_no_study():
    counts = {"iid, seed 0": np.full((3, 2), 4), "skewed": np.array([[5, 0], [0, 5], [1, 1]])}
    figure = client_figures.partition_figure(counts, ["cat", "dog"])
    assert [len(axis.collections[0].get_offsets()) for axis in figure.axes] == [6, 4]
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["cat", "dog"]
    assert client_figures.partition_figure({}).axes[0].get_title(loc="left") == "no split yet"


def test_a_gallery_has_a_row_per_class():
    images = SyntheticImages(
        np.zeros((30, 64, 48, 3), np.uint8), np.repeat([0, 2, 5], 10), ["a", "b", "c"]
    )
    figure = synthetic_gallery(images, per_class=4, side=32)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "c", "5"]
    assert axis.images[0].get_array().shape == (3 * 34 - 2, 4 * 26 - 2, 3)


@pytest.mark.parametrize("draw", ALL)
def test_figures_of_other_studies(draw: Callable[[Study], Figure], others: dict[str, Study]):
    for study in others.values():
        figure = draw(study)
        figure.canvas.draw()
        assert data_uri(figure).startswith("data:image/svg+xml;base64,")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, make_study, make_run) -> dict:
    folder = tmp_path_factory.mktemp("others")
    (folder / "empty").mkdir()
    make_run(folder / "half", "fedavg", "iid", None, 0)
    make_run(folder / "half", "cachefl", "iid", None, 0, last_round=2, status="failed")
    make_run(folder / "half", "cachefl", "iid", None, 1, last_round=0, status="running")
    make_run(folder / "half", "feddgm", "dirichlet", 0.1, 0, last_round=0, status="running")
    make_study(folder / "one", methods=["fedavg"], partitions=[("shards", None)], seeds=[0])
    return {name: load(folder / name) for name in ("empty", "half", "one")}


def test_unfinished_runs_are_drawn_as_far_as_all_have_come(others: dict[str, Study]):
    axis = plots.accuracy_over_rounds(others["half"]).axes[-1]
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["fedavg"].get_xdata()) == list(range(9))
    assert list(lines["cachefl"].get_xdata()) == [0]


def test_bands_by_number_of_seeds(study: Study):
    table = curves(study).query("method == 'cachefl' and partition == 'iid'")
    two = plots.mean_curve(table[table["seed"] < 2]).iloc[-1]
    last = table[(table["seed"] < 2) & (table["round"] == 8)]["accuracy"]
    assert (two["low"], two["high"]) == (last.min(), last.max())
    one = plots.mean_curve(table[table["seed"] < 1]).iloc[-1]
    assert np.isnan(one["low"])


def test_colours_are_fixed_and_distinct():
    names = ["fedavg", "cachefl", "cachefl (k=8)", "zero_shot", "centralised", *"abcdefgh"]
    styles = method_styles(names)
    assert styles["fedavg"].color == method_styles(["fedavg"])["fedavg"].color
    assert len({style.color for style in styles.values()}) == len(names)
    assert method_styles(reversed(names)) == styles
    many = method_styles([f"m{place}" for place in range(40)])
    assert len({(s.color, str(s.line), s.marker) for s in many.values()}) == 40


def test_files_are_the_same_every_time(study: Study):
    first, second = (data_uri(plots.accuracy_against_alpha(study)) for _ in range(2))
    assert first == second
