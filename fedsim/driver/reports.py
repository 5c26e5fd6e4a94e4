"""What is read out of the folders of studies: their tables, comparisons and costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from fedsim.driver.plan import find_study, study_lock


def report(folder: Path, csv: Path | None = None, latex: Path | None = None) -> None:
    """Print a study's table, write its report.html, and the table into the files asked for.

    Raises:
        ResultsError: There is no study, or a file cannot be written.
    """
    from fedsim.results.report.export import check_targets

    find_study(folder)
    check_targets(csv, latex)
    print_report(folder, csv, latex)


def print_report(folder: Path, csv: Path | None = None, latex: Path | None = None) -> None:
    """`report` of a folder that is known to hold a study."""
    from fedsim.results.report.export import export
    from fedsim.results.report.page import write_report
    from fedsim.results.report.terminal import format_summary
    from fedsim.results.study import load

    study = load(folder)
    summary = study.summary()
    typer.echo(format_summary(summary))
    typer.echo(f"\nreport: {write_report(folder)}")
    _say_written(export(summary, study.name, csv, latex))


def compare(
    folders: Sequence[Path],
    reference: str | None = None,
    methods: Sequence[str] = (),
    partitions: Sequence[str] = (),
    margin: str | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
) -> None:
    """Print the comparison of several studies, and write it into the files asked for.

    Raises:
        ConfigError: The margin is no number of points.
        ResultsError: There is no such study, or a file cannot be written.
    """
    from fedsim.results.report import comparison
    from fedsim.results.report.export import check_targets, export

    for folder in folders:
        find_study(folder)
    check_targets(csv, latex)
    points = comparison.margin_of(margin)
    found = comparison.compare(folders, reference, points, methods, partitions)
    for warning in found.warnings:
        typer.echo(f"fedsim: {warning}", err=True)
    typer.echo(found.text)
    _say_written(export(found.summary, found.name, csv, latex))


def costs(folder: Path, prices: Path | None = None, csv: Path | None = None) -> None:
    """Print what each method of a study cost, and write it into the file asked for.

    Raises:
        ConfigError: The file of prices is wrong.
        ResultsError: There is no study, or the file cannot be written.
    """
    from fedsim.results.report import cost_sheet, export
    from fedsim.results.study import load

    find_study(folder)
    export.check_targets(csv)
    priced = None if prices is None else cost_sheet.read_prices(prices)
    sheet = cost_sheet.cost_sheet(load(folder), priced)
    typer.echo(cost_sheet.format_costs(sheet))
    if csv is not None:
        export.write_csv(sheet, csv)
        _say_written([csv])


def pack(folder: Path, file: Path) -> None:
    """Put a study's finished runs into one file.

    Raises:
        ResultsError: There is no study, or the file cannot be written.
    """
    from fedsim.results.tables import archive

    find_study(folder)
    typer.echo(f"{archive.pack(folder, file)} finished runs in {file}")


def unpack(file: Path, folder: Path | None = None) -> None:
    """Put the runs of a packed file into a folder; by default `runs/STUDY`.

    Raises:
        ResultsError: The file is broken, or the folder is in use or holds something else.
    """
    from fedsim.results.tables import archive

    where = Path("runs") / archive.study_in(file) if folder is None else folder
    archive.check_folder(where)
    with study_lock(where):
        written, known = archive.unpack(file, where)
    typer.echo(f"{len(written)} runs written into {where}, {len(known)} were there already")


def _say_written(files: Iterable[Path]) -> None:
    for file in files:
        typer.echo(f"written: {file}")
