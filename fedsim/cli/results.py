"""The commands that read the folders of studies: tables, comparisons, costs and archives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from fedsim.cli.arguments import (
    Archive,
    Csv,
    Folder,
    Folders,
    Latex,
    Margin,
    NewFolder,
    OnlyMethods,
    OnlyPartitions,
    PricesFile,
    Reference,
)


def report(folder: Folder, csv: Csv = None, latex: Latex = None) -> None:
    """Print a study's table and write its report.html.

    Works at any time: while the study runs, half-way, and after a kill.
    """
    from fedsim.results.report.export import check_targets

    check_targets(csv, latex)
    print_report(folder, csv, latex)


def print_report(folder: Path, csv: Path | None = None, latex: Path | None = None) -> None:
    """`report`, without checks of the arguments."""
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
    folders: Folders,
    reference: Reference = None,
    methods: OnlyMethods = None,
    partitions: OnlyPartitions = None,
    margin: Margin = None,
    csv: Csv = None,
    latex: Latex = None,
) -> None:
    """Put the methods of several studies side by side.

    Runs of one data set, partition and seed are paired where both studies split the data alike;
    otherwise methods are compared by Welch's test, and the table says so. Over several data sets
    also average ranks and Wilcoxon's signed-rank test.
    """
    from fedsim.results.report import comparison
    from fedsim.results.report.export import check_targets, export

    check_targets(csv, latex)
    points = comparison.margin_of(margin)
    found = comparison.compare(folders, reference, points, methods or (), partitions or ())
    for warning in found.warnings:
        typer.echo(f"fedsim: {warning}", err=True)
    typer.echo(found.text)
    _say_written(export(found.summary, found.name, csv, latex))


def costs(folder: Folder, prices: PricesFile = None, csv: Csv = None) -> None:
    """Print what each method cost: bytes, compute, time and money.

    Means over the finished runs, by partition; for each client, and for all of them together.
    """
    from fedsim.results.report import cost_sheet, export
    from fedsim.results.study import load

    export.check_targets(csv)
    priced = None if prices is None else cost_sheet.read_prices(prices)
    sheet = cost_sheet.cost_sheet(load(folder), priced)
    typer.echo(cost_sheet.format_costs(sheet))
    if csv is not None:
        export.write_csv(sheet, csv)
        _say_written([csv])


def pack(folder: Folder, file: Archive) -> None:
    """Put a study's finished runs into one small file.

    To publish beside a paper, or to go on elsewhere. Its tables, that is: checkpoints, images and
    predictions of single samples stay behind.
    """
    from fedsim.results.tables import archive

    typer.echo(f"{archive.pack(folder, file)} finished runs in {file}")


def unpack(file: Archive, folder: NewFolder = None) -> None:
    """Put the runs of such a file into a study's folder.

    Runs that the folder has stay as they are. `fedsim report` works on it, and a sweep of the same
    settings runs only what is missing.
    """
    from fedsim.driver.plan import study_lock
    from fedsim.results.tables import archive

    where = Path("runs") / archive.study_in(file) if folder is None else folder
    archive.check_folder(where)
    with study_lock(where):
        written, known = archive.unpack(file, where)
    typer.echo(f"{len(written)} runs written into {where}, {len(known)} were there already")


def _say_written(files: Iterable[Path]) -> None:
    for file in files:
        typer.echo(f"written: {file}")
