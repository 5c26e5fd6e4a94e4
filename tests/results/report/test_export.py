"""Tables for a paper: CSV and LaTeX."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.errors import ResultsError
from fedsim.results.report.export import check_targets, export
from fedsim.results.report.latex import escape, latex_table
from fedsim.results.study import Study, load

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


def grid(text: str) -> list[list[str]]:
    """The cells of a table's rows; fails where rows do not have as many columns as announced."""
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    body = re.sub(r"\\midrule|\\cmidrule\(lr\)\{\d+-\d+\}", "", body)
    rows = []
    for line in body.strip().split(r"\\"):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)&", line)]
        if cells == [""]:
            continue
        spans = (re.match(r"\\multicolumn\{(\d+)\}", cell) for cell in cells)
        assert sum(int(span[1]) if span else 1 for span in spans) == len(columns), line
        rows.append(cells)
    return rows


def well_formed(text: str) -> bool:
    """Whether braces, dollars and environments are closed in order."""
    plain = re.sub(r"(?m)(?<!\\)%.*$", "", text)
    bare = re.sub(r"\\[\\&%$#_{}]", "", plain)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    open_ones: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", plain):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    return depth == 0 and open_ones == [] and bare.count("$") % 2 == 0


def test_csv_holds_every_number_as_it_is(study: Study, tmp_path: Path):
    summary = study.summary()
    path = tmp_path / "new" / "table.csv"
    assert export(summary, "demo", path, None) == [path]
    back = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert len(back) == 15
    assert back["reference"].unique().tolist() == ["fedavg"]
    assert back["confidence"].unique().tolist() == ["0.95"]
    for name in summary.columns:
        if pd.api.types.is_float_dtype(summary[name]):
            numbers = [float(text or "nan") for text in back[name]]
            np.testing.assert_array_equal(numbers, summary[name])
    keys = ["dataset", "partition", "method"]
    assert back[keys].to_numpy().tolist() == summary[keys].to_numpy().tolist()
    assert not back.duplicated(keys).any()


def test_latex_has_methods_as_rows_and_partitions_as_columns(study: Study):
    summary = study.summary()
    text = latex_table(summary, "demo")
    assert well_formed(text)
    header, *rows = grid(text)
    assert header == ["", "dirichlet 0.05", "dirichlet 0.5", "iid"]
    assert [row[0] for row in rows] == [
        r"zero\_shot", "fedavg", "cachefl", "feddgm", "centralised"
    ]  # fmt: skip
    mean = summary.query("method == 'feddgm' and partition == 'iid'")["accuracy_mean"].iloc[0]
    half = summary.query("method == 'feddgm' and partition == 'iid'")["accuracy_high"] - mean
    assert f"{100 * mean:.1f}" in rows[3][3]
    assert rf"{{\scriptsize $\pm$ {100 * half.iloc[0]:.1f}}}" in rows[3][3]
    assert r"\label{tab:demo}" in text
    assert "mean over seeds 0 to 3" in text
    assert r"half the 95\,\% t interval" in text
    assert text.index(r"\midrule" + "\ncentralised") > text.index("feddgm")  # set apart


def test_marks_are_those_of_the_summary(study: Study):
    summary = study.summary()
    _, *rows = grid(latex_table(summary, "demo"))
    ranked = summary[summary["method"] != "centralised"].sort_values("accuracy_mean")
    for column, partition in enumerate(["dirichlet 0.05", "dirichlet 0.5", "iid"], 1):
        here = ranked[ranked["partition"] == partition]
        second, best = here["method"].iloc[-2:]
        cells = {row[0].replace(r"\_", "_"): row[column] for row in rows}
        assert [name for name, cell in cells.items() if r"\textbf" in cell] == [best]
        assert [name for name, cell in cells.items() if r"\underline" in cell] == [second]
        low = summary[(summary["p_holm"] < 0.05) & (summary["partition"] == partition)]
        marked = {name for name, cell in cells.items() if r"$^\dagger$" in cell}
        assert marked == set(low["method"])
        assert marked  # else this would show nothing
    assert "differs from fedavg ($p < 0.05$, paired t test, Holm-corrected)" in latex_table(
        summary, "demo"
    )


def test_data_sets_span_their_partitions(tmp_path: Path, make_run: Callable[..., str]):
    for dataset, partitions in (("d_1", [("iid", None)]), ("d2", [("iid", None), ("dir", 0.1)])):
        for partition, alpha in partitions:
            for method in ("fedavg", "cachefl"):
                make_run(tmp_path, method, partition, alpha, 0, dataset=dataset)
    text = latex_table(load(tmp_path).summary(), "two sets")
    spans, names, *rows = grid(text)
    assert spans == ["", r"\multicolumn{2}{c}{d2}", r"d\_1"]
    assert names == ["", "dir 0.1", "iid", "iid"]
    assert "\\\\\n\\cmidrule(lr){2-3} \\cmidrule(lr){4-4}\n & dir 0.1" in text  # below the spans
    assert len(rows) == 2
    assert r"\pm" not in text  # one seed has no interval
    assert r"\label{tab:two-sets}" in text


def test_a_method_without_a_number_has_a_dash(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0)
    make_run(tmp_path, "fedavg", "dirichlet", 0.1, 0)
    make_run(tmp_path, "cachefl", "iid", None, 0)
    make_run(tmp_path, "cachefl", "dirichlet", 0.1, 0, last_round=2, status="failed")
    text = latex_table(load(tmp_path).summary(), "half")
    assert grid(text)[-1][1] == "--"
    assert "% 1 runs are not finished" in text


def test_equal_means_share_the_first_place(tmp_path: Path, make_run: Callable[..., str]):
    for method in ("zero_shot", "a", "b"):
        make_run(tmp_path, method, "iid", None, 0)
    summary = load(tmp_path).summary()
    summary["accuracy_mean"] = [0.5, 0.7, 0.7]
    _, *rows = grid(latex_table(summary, "ties"))
    assert [r"\textbf" in row[1] for row in rows] == [False, True, True]
    assert r"\underline" in rows[0][1]


NASTY = r"a_b {c} 50% & #1 $x^2$ ~ \n <3> |"


def test_special_characters_are_escaped(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0)
    summary = load(tmp_path).summary()
    for name in ("dataset", "partition", "method"):
        summary[name] = [NASTY]
    text = latex_table(summary, NASTY)
    assert well_formed(text)
    assert grid(text)[1][0] == escape(NASTY)
    assert "a\\_b \\{c\\} 50\\% \\& \\#1 \\$x\\textasciicircum{}2\\$" in text
    assert re.search(r"\\label\{tab:[A-Za-z0-9-]+\}", text)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("case", ["study", "nasty"])
def test_latex_compiles(study: Study, tmp_path: Path, case: str):
    summary = study.summary()
    if case == "nasty":
        summary["method"] = summary["method"] + NASTY
        summary["partition"] = summary["partition"] + NASTY
    (tmp_path / "table.tex").write_text(DOCUMENT % latex_table(summary, "demo"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_cannot_be_written_is_refused(study: Study, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"--csv .* is a folder"):
        check_targets(tmp_path)
    with pytest.raises(ResultsError, match=r"--latex .*/x.tex cannot be written"):
        check_targets(None, tmp_path / "file" / "x.tex")
    with pytest.raises(ResultsError, match="give two files"):
        check_targets(tmp_path / "x", tmp_path / "x")
    check_targets(tmp_path / "new" / "x.csv", None)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ResultsError, match="cannot be written"):
        export(study.summary(), "demo", tmp_path / "file" / "x.csv", None)
    with pytest.raises(ResultsError, match="no run of empty has started"):
        export(load(tmp_path).summary(), "empty", tmp_path / "x.csv", None)
