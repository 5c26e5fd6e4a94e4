"""The `fedsim` command. No logic lives here, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.arguments import (
    Address,
    Archive,
    Config,
    Csv,
    DryRun,
    Folder,
    Folders,
    Latex,
    Margin,
    NewFolder,
    OnlyMethods,
    OnlyPartitions,
    Overrides,
    Reference,
)
from fedsim.errors import FedsimError
from fedsim.interrupt import EXIT_CODE, check, last_words, quiet_exit, watch

if TYPE_CHECKING:
    from fedsim.config import Experiment
    from fedsim.config.study import EarlyStopping

app = typer.Typer(
    name="fedsim",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Simulate federated learning of vision models on a Ray cluster.

    A study is one YAML file: methods x partitions x seeds. `fedsim sweep` runs all of it and ends
    with a table and report.html; `fedsim run` runs one cell. Any setting of the file can be
    overridden on the command line:

    \b
        fedsim sweep experiments/quickstart.yaml --dry-run
        fedsim sweep experiments/quickstart.yaml train.rounds=5 'seeds=[0, 1]'
        fedsim run experiments/quickstart.yaml method=cachefl seed=0 partition.scheme=iid
        fedsim resume runs/quickstart
        fedsim compare runs/quickstart runs/other --latex table.tex

    What is committed is never lost: after Ctrl+C or a kill, start the same command again, or
    `fedsim resume FOLDER`.

    \b
    Exit codes:
        0  all runs finished          5  the cluster has no room for it
        1  some runs of a sweep       6  a simulated client failed
           failed                     7  a results folder is missing, broken or in use
        2  the configuration          8  an actor died or did not answer
        3  the data                 130  interrupted
        4  a model or generator
    """,
)


@app.command()
def run(
    config: Config, overrides: Overrides = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """Run one cell of a study: one method, one partition, one seed.

    Where the study describes several, overrides choose one; for example: method=cachefl seed=0
    partition.scheme=dirichlet_label partition.dirichlet_alpha=0.1
    """
    from fedsim.config.study import load_study
    from fedsim.driver.launch import only_run
    from fedsim.methods import METHODS

    study = load_study(config, overrides or ())
    only = only_run(study.experiments(METHODS), str(config))
    _go([only], study.folder, dry_run, address)


@app.command()
def sweep(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    address: Address = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Choose hyper-parameters on held-out client data instead (see above)."
        ),
    ] = False,
) -> None:
    """Run every cell of a study, and write its report.

    Cells that are finished are not run again: after a kill, or with more seeds in the file, start
    the same command again.

    With --tune the study's `tune` section is run instead: every method gets the same number of
    trials on seeds of their own, chosen on held-out client data, never on test data. What was
    chosen is printed and written to selected.yaml in the study's folder.
    """
    from fedsim.config.study import load_study
    from fedsim.methods import METHODS

    study = load_study(config, overrides or ())
    if tune:
        from fedsim.driver.tuning import tune_study

        def execute(trials: list[Experiment], early_stopping: EarlyStopping | None) -> None:
            _go(trials, study.folder, dry_run, address, True, early_stopping)

        tune_study(study, METHODS, execute, dry_run)
        return
    _go(study.experiments(METHODS), study.folder, dry_run, address)


@app.command()
def resume(folder: Folder, address: Address = None) -> None:
    """Go on with what a study has not finished.

    Each run goes on from its last committed round; runs that failed are tried again.
    """
    from fedsim.driver.launch import read_plan
    from fedsim.storage.remote import local_folder, url_of

    _go(read_plan(folder), local_folder(url_of(folder) or folder), False, address)


@app.command()
def report(folder: Folder, csv: Csv = None, latex: Latex = None) -> None:
    """Print a study's table and write its report.html.

    Works at any time: while the study runs, half-way, and after a kill.
    """
    from fedsim.driver.launch import find_study
    from fedsim.results.report.export import check_targets

    find_study(folder)
    check_targets(csv, latex)
    _report(folder, csv, latex)


@app.command()
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
    from fedsim.driver.launch import find_study
    from fedsim.results.report import comparison
    from fedsim.results.report.export import check_targets, export

    for folder in folders:
        find_study(folder)
    check_targets(csv, latex)
    points = comparison.margin_of(margin)
    found = comparison.compare(folders, reference, points, methods or (), partitions or ())
    for warning in found.warnings:
        typer.echo(f"fedsim: {warning}", err=True)
    typer.echo(found.text)
    _say_written(export(found.summary, found.name, csv, latex))


@app.command()
def costs(
    folder: Folder,
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="PRICES.yaml",
            help="Also reckon money: currency, per_gb_sent, per_gpu_hour, per_cpu_hour.",
            show_default=False,
        ),
    ] = None,
    csv: Csv = None,
) -> None:
    """Print what each method cost: bytes, compute, time and money.

    Means over the finished runs, by partition; for each client, and for all of them together.
    """
    from fedsim.driver.launch import find_study
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


@app.command()
def pack(folder: Folder, file: Archive) -> None:
    """Put a study's finished runs into one small file.

    To publish beside a paper, or to go on elsewhere. Its tables, that is: checkpoints, images and
    predictions of single samples stay behind.
    """
    from fedsim.driver.launch import find_study
    from fedsim.results.tables import archive

    find_study(folder)
    typer.echo(f"{archive.pack(folder, file)} finished runs in {file}")


@app.command()
def unpack(file: Archive, folder: NewFolder = None) -> None:
    """Put the runs of such a file into a study's folder.

    Runs that the folder has stay as they are. `fedsim report` works on it, and a sweep of the same
    settings runs only what is missing.
    """
    from fedsim.driver.launch import study_lock
    from fedsim.results.tables import archive

    where = Path("runs") / archive.study_in(file) if folder is None else folder
    archive.check_folder(where)
    with study_lock(where):
        written, known = archive.unpack(file, where)
    typer.echo(f"{len(written)} runs written into {where}, {len(known)} were there already")


@app.command()
def partition(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Also draw the splits into this file.", show_default=False
        ),
    ] = None,
) -> None:
    """Show how a study splits its data over clients.

    Nothing is trained: a line of statistics per split, and the samples of each client and class.
    """
    from fedsim.cli.splits import check_picture, draw_splits, print_splits
    from fedsim.config.study import load_study
    from fedsim.methods import METHODS

    experiments = load_study(config, overrides or ()).experiments(METHODS)
    if out is not None:
        check_picture(out)
    print_splits(experiments)
    if out is not None:
        draw_splits(experiments, out)
        typer.echo(f"drawn into {out}")


@app.command()
def doctor(address: Address = None) -> None:
    """Check this machine or cluster before using it.

    Versions, Ray, GPUs, memory, disk, storage that nodes share, and weights; exits with 1 if
    something is wrong.
    """
    from fedsim.cluster.doctor import examine

    if not examine(address):
        raise typer.Exit(1)


def _go(
    experiments: list[Experiment],
    folder: Path,
    dry_run: bool,
    address: str | None,
    trials: bool = False,
    early_stopping: EarlyStopping | None = None,
) -> None:
    """Check, then run what is not finished, then report; trials may fail and are not reported."""
    from fedsim.cli.display import Display
    from fedsim.driver.launch import check_data, launch, study_lock, unfinished
    from fedsim.storage.remote import Copy, local_folder, url_of

    check_data(experiments)
    check()
    if dry_run:
        from fedsim.cli.dry_run import describe

        seen = local_folder(url_of(folder) or folder, reading=True)
        Copy(seen).pull()
        describe(experiments, seen, address)
        return
    where = url_of(folder) or folder
    with study_lock(folder):
        ended = ("finished", "stopped") if early_stopping else ("finished",)
        todo = unfinished(folder, experiments, ended)
        done = len(experiments) - len(todo)
        failed = 0
        if todo:
            again = "start the same command again" if trials else f"fedsim resume {where}"
            kept = f"interrupted; what was committed is kept; to go on: {again}"
            with Display(todo, done) as display, last_words(kept):
                launch(todo, folder, display.hear, address, trials, early_stopping)
            failed = len(display.failed)
        elif len(experiments) > 1:
            typer.echo(f"all {len(experiments)} runs are finished", err=True)
    if trials:
        return
    _report(folder)
    Copy(folder).push()
    if failed:
        typer.echo(
            f"fedsim: {failed} of {len(todo)} runs failed, as said above and in report.html; "
            f"to try them again: fedsim resume {where}",
            err=True,
        )
        raise typer.Exit(1)


def _report(folder: Path, csv: Path | None = None, latex: Path | None = None) -> None:
    from fedsim.results.report.export import export
    from fedsim.results.report.page import write_report
    from fedsim.results.report.terminal import format_summary
    from fedsim.results.study import load

    study = load(folder)
    summary = study.summary()
    typer.echo(format_summary(summary))
    typer.echo(f"\nreport: {write_report(folder)}")
    _say_written(export(summary, study.name, csv, latex))


def _say_written(files: Iterable[Path]) -> None:
    for file in files:
        typer.echo(f"written: {file}")


def _leave(code: int) -> None:
    """End the process. Ray that was interrupted while it started crashes in its own teardown."""
    if code == EXIT_CODE and "ray" in sys.modules:
        quiet_exit(code)
    sys.exit(code)


def main(arguments: list[str] | None = None, leave: Callable[[int], None] = _leave) -> None:
    """Entry point: every error of fedsim is one message and an exit code."""
    watch()
    code = 0
    try:
        code = app(arguments, prog_name="fedsim", standalone_mode=False) or 0
    except FedsimError as error:
        typer.echo(f"fedsim: {error}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_CODE
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # errors of usage come from click
            raise
        _show_usage(error)
        code = getattr(error, "exit_code", 2)
    leave(code)


def _show_usage(error: Any) -> None:
    """An error of usage in our form; a command without arguments shows its help."""
    context, message = getattr(error, "ctx", None), error.format_message().strip()
    if context is not None and message == context.get_help().strip():
        typer.echo(message, err=True)
        return
    path = context.command_path if context is not None else "fedsim"
    message = message[:1].lower() + message[1:].rstrip(".").replace(". Did you", "; did you")
    typer.echo(f"fedsim: {message}; see `{path} --help`", err=True)
