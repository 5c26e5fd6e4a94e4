"""The `fedsim` command. No logic lives here, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from fedsim.config import Experiment

app = typer.Typer(
    name="fedsim",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Simulate federated learning of vision models on a Ray cluster.

    A study is one YAML file: methods x partitions x seeds. `fedsim sweep` runs all of it and ends
    with a table and report.html; `fedsim run` runs one cell. Any setting can be overridden:

        fedsim sweep experiments/quickstart.yaml train.rounds=5 'seeds=[0,1]'

        fedsim run experiments/quickstart.yaml method=cachefl partition.dirichlet_alpha=0.1

    Exit codes: 0 all runs finished; 1 some runs of a sweep failed; 2 configuration; 3 data;
    4 models; 5 placement; 6 a client failed; 7 results folder; 8 execution; 130 interrupted.
    """,
)

Config = Annotated[Path, typer.Argument(help="The study's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, such as train.lr=0.1 or seed=3.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster, such as 'auto' or host:6379.")
]
Folder = Annotated[Path, typer.Argument(help="A study's output folder, such as runs/quickstart.")]


@app.command()
def run(
    config: Config, overrides: Overrides = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """Run one cell of a study: one method, one partition, one seed.

    The overrides must leave exactly one: method=NAME keeps a method, seed=N a seed, and
    partition.KEY=VALUE replaces the study's partitions.
    """
    from fedsim.launch import only_run
    from fedsim.methods import METHODS
    from fedsim.study import load_study

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
        bool, typer.Option("--tune", help="Choose hyper-parameters on held-out client data.")
    ] = False,
) -> None:
    """Run all cells of a study that are not finished yet, and write the report.

    With --tune the study's `tune` section is run instead: every method gets the same number of
    trials on seeds of their own, chosen on held-out client data, never on test data. What was
    chosen is printed and written to selected.yaml in the study's folder.
    """
    from fedsim.methods import METHODS
    from fedsim.study import load_study

    study = load_study(config, overrides or ())
    if tune:
        from fedsim.tuning import tune_study

        tune_study(study, METHODS, lambda e: _go(e, study.folder, dry_run, address, trials=True))
        return
    _go(study.experiments(METHODS), study.folder, dry_run, address)


@app.command()
def resume(folder: Folder, address: Address = None) -> None:
    """Go on with what a study has not finished, each run from its last committed round."""
    from fedsim.launch import read_plan

    _go(read_plan(folder), folder, False, address)


@app.command()
def report(folder: Folder) -> None:
    """Print a study's table and write its report.html; works half-way and after a kill."""
    _report(folder)


@app.command()
def partition(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Also draw the splits into this PNG.")] = None,
) -> None:
    """Show how a study's data would be split over clients, without training."""
    from fedsim.methods import METHODS
    from fedsim.splits_view import draw_splits, print_splits
    from fedsim.study import load_study

    experiments = load_study(config, overrides or ()).experiments(METHODS)
    print_splits(experiments)
    if out is not None:
        draw_splits(experiments, out)
        typer.echo(f"drawn into {out}")


@app.command()
def doctor(address: Address = None) -> None:
    """Check this machine or cluster: versions, Ray, GPUs, memory, disk, data and weights."""
    from fedsim.cluster.doctor import examine

    if not examine(address):
        raise typer.Exit(1)


def _go(
    experiments: list[Experiment],
    folder: Path,
    dry_run: bool,
    address: str | None,
    trials: bool = False,
) -> None:
    """Check, then run what is not finished, then report; trials may fail and are not reported."""
    from fedsim.launch import check_data, launch, study_lock, unfinished
    from fedsim.progress import Display

    check_data(experiments)
    if dry_run:
        from fedsim.dry_run import describe

        describe(experiments, folder, address)
        return
    with study_lock(folder):
        todo = unfinished(folder, experiments)
        done = len(experiments) - len(todo)
        failed = False
        if todo:
            with Display(todo, done) as display, _say_how_to_go_on(folder):
                launch(todo, folder, display.hear, address, keep_going=trials)
            failed = bool(display.failed)
        elif len(experiments) > 1:
            typer.echo(f"all {len(experiments)} runs are finished", err=True)
    if trials:
        return
    _report(folder)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _say_how_to_go_on(folder: Path) -> Iterator[None]:
    """After Ctrl+C, say where things are and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; what was committed is kept: fedsim resume {folder}", err=True)
        raise


def _report(folder: Path) -> None:
    from fedsim.results.report import write_report
    from fedsim.results.tables import load
    from fedsim.results.text import format_summary

    typer.echo(format_summary(load(folder).summary()))
    typer.echo(f"\nreport: {write_report(folder)}")


def main(arguments: list[str] | None = None, leave: Callable[[int], None] = sys.exit) -> None:
    """Entry point: every error of fedsim is one message and an exit code."""
    code = 0
    try:
        code = app(arguments, standalone_mode=False) or 0
    except FedsimError as error:
        typer.echo(f"fedsim: {error}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        show = getattr(error, "show", None)  # usage errors of click, which typer may vendor
        if show is None:
            raise
        show()
        code = getattr(error, "exit_code", 2)
    leave(code)
