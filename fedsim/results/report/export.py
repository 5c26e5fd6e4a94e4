"""Tables for a paper: a summary as CSV, with unrounded numbers, or as LaTeX."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from fedsim.errors import ResultsError
from fedsim.results.report.latex import latex_table
from fedsim.storage.atomic import whole_file


def export(summary: pd.DataFrame, name: str, csv: Path | None, latex: Path | None) -> list[Path]:
    """Write the summary of a study into the files asked for, and return their paths.

    The CSV file also has the reference and the confidence of the intervals, as columns. The LaTeX
    table is that of `fedsim.results.report.latex`.

    Raises:
        ResultsError: There is nothing to write, or a file cannot be written.
    """
    if summary.empty and (csv or latex):
        raise ResultsError(f"no run of {name} has started: there is no table to write")
    if csv is not None:
        attrs = {key: summary.attrs[key] for key in ("reference", "confidence")}
        write_csv(summary.assign(**attrs), csv)
    if latex is not None:
        _write(latex_table(summary, name), latex)
    return [path for path in (csv, latex) if path is not None]


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a data frame as CSV, with unrounded numbers.

    Raises:
        ResultsError: The file cannot be written.
    """
    _write(frame.to_csv(index=False, lineterminator="\n"), path)


def check_targets(csv: Path | None = None, latex: Path | None = None) -> None:
    """Refuse files that cannot be written, before anything is computed.

    Raises:
        ResultsError: A file cannot be written.
    """
    for option, path in (("--csv", csv), ("--latex", latex)):
        if path is None:
            continue
        if path.is_dir():
            raise ResultsError(f"{option} {path} is a folder: give a file in it")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ResultsError(
                f"{option} {path} cannot be written: {above} is no folder to write to"
            )
    if csv is not None and latex is not None and csv.absolute() == latex.absolute():
        raise ResultsError(f"--csv and --latex are both {csv}: give two files")


def _write(text: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ResultsError(f"{path} cannot be written ({error.strerror})") from error
