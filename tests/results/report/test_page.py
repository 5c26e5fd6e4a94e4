import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedsim.errors import ResultsError
from fedsim.results.report.page import write_report
from fedsim.results.study import Study, load
from fedsim.results.tables.writer import TableWriter


class Page(HTMLParser):
    """Collects text and addresses, and checks that tags close."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(study: Study) -> str:
    (study.path / "experiment.yaml").write_text("study: demo\n")
    return write_report(study.path).read_text()


def test_everything_is_in_one_file(page: str):
    parsed = Page(page)
    assert len(parsed.addresses) >= 6
    assert all(address.startswith("data:image/") for address in parsed.addresses)
    without_data = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.search(r"https?:|//\w|@import|url\(|<script|<link", without_data)


@pytest.mark.parametrize(
    "words",
    ["demo", "cachefl has the highest accuracy in 3 of 3 partitions", "What was run", "60 finished",
     "dirichlet 0.05", "Test processor", "fedsim 0.1.0", "Summary", "ceiling", "against fedavg",
     "Accuracy over rounds", "Accuracy for bytes", "Accuracy against heterogeneity",
     "Accuracy by class: shapes", "Set f00d", "How the data was split", "total variation",
     "Where time went", "No run failed", "How to reproduce", "experiment.yaml", "train.lr"],
)  # fmt: skip
def test_the_page_says(page: str, words: str):
    assert words in " ".join(" ".join(Page(page).words).split())


def test_every_figure_has_a_caption_and_a_text_for_those_who_cannot_see_it(page: str):
    assert page.count("<img") == page.count("<figcaption>") == page.count("<figure>")
    assert not re.search(r'alt=""', page)


def test_a_half_way_study_is_flagged_on_top(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0)
    make_run(tmp_path, "cachefl", "iid", None, 0, last_round=3, status="failed")
    make_run(tmp_path, "feddgm", "iid", None, 0, last_round=0, status="running")
    (tmp_path / "plan.json").write_text("{}")
    text = write_report(tmp_path, command="fedsim sweep x.yaml").read_text()
    words = " ".join(" ".join(Page(text).words).split())
    assert "2 of 3 runs are not finished." in words
    assert words.index("not finished") < words.index("What was run")
    assert "cachefl, shapes, iid, seed 0: failed, round 3 of 8" in words
    assert "client 2 failed: <loss> is not finite" in words  # escaped in the file
    assert "client 2 failed in round 3 on n1" in words
    assert "fedsim sweep x.yaml" in words
    assert f"fedsim resume {tmp_path}" in words
    assert "<loss>" not in text


def test_settings_that_differ_are_listed_apart(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0, config={"train": {"lr": 0.1, "rounds": 5}})
    make_run(tmp_path, "cachefl", "iid", None, 0, config={"train": {"lr": 0.3, "rounds": 5}})
    text = write_report(tmp_path).read_text()
    differing, shared = text.split("Settings in which the methods differ")[1].split("<details>")[:2]
    assert "train.lr" in differing
    assert "0.3" in differing
    assert "train.rounds" in shared


def test_several_data_sets_get_ranks(tmp_path: Path, make_run: Callable[..., str]):
    for dataset in ("d1", "d2"):
        for method in ("fedavg", "cachefl"):
            make_run(tmp_path, method, "iid", None, 0, dataset=dataset)
    text = write_report(tmp_path).read_text()
    assert "Over data sets" in text
    assert "average rank" in text


def test_a_study_without_runs_or_rounds_has_a_report(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "No run of this study has started." in write_report(tmp_path / "empty").read_text()
    with TableWriter(tmp_path / "new", "a") as writer:
        writer.update_run(method="fedavg", status="running")
    assert "1 of 1 runs are not finished" in write_report(tmp_path / "new").read_text()
    with pytest.raises(ResultsError, match="did you mean 'new'"):
        write_report(tmp_path / "nwe")


def test_only_tuning_runs_yet(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0, phase="tune")
    assert load(tmp_path).summary().empty
    assert "1 of them for tuning" in write_report(tmp_path).read_text()
