import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.results.report.numbers import human_bytes
from fedsim.results.report.terminal import format_summary
from fedsim.results.study import Study, load


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (1e15, "909.5 TiB"),
     (1e18, "909494.7 TiB"), (math.nan, "-")],
)  # fmt: skip
def test_human_bytes(size: float, text: str):
    assert human_bytes(size) == text


def test_the_terminal_table_fits_and_says_what_matters(study: Study):
    text = format_summary(study.summary())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    assert sum(line.startswith("*  cachefl") for line in lines) == 3
    assert any("fedavg" in line and ">8/>8" in line and ">3.1 MiB" in line for line in lines)
    assert "zero-shot 55.0" in text
    assert "605.5 KiB" in text


def test_long_names_are_cut_to_fit(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg_with_a_name_that_goes_on_and_on_and_on_and_on", "iid", None, 0)
    make_run(tmp_path, "cachefl", "iid", None, 0)
    text = format_summary(load(tmp_path).summary())
    assert "…" in text
    assert max(map(len, text.splitlines())) <= 110


def test_unfinished_and_unpaired_runs_are_told(tmp_path: Path, make_run: Callable[..., str]):
    for seed in (0, 1):
        make_run(tmp_path, "fedavg", "iid", None, seed)
    make_run(tmp_path, "cachefl", "iid", None, 0)
    make_run(tmp_path, "cachefl", "iid", None, 1, last_round=2, status="interrupted")
    text = format_summary(load(tmp_path).summary())
    assert "1+1?" in text
    assert "1 runs are not finished" in text
    assert "1 runs have no partner" in text
    assert "because the study has no centralised run" in text


def test_an_empty_study_says_so(tmp_path: Path):
    assert format_summary(load(tmp_path).summary()) == "No run of this study has started."
