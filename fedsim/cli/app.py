"""The `fedsim` command. Every command imports what it needs when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsim.cli import results
from fedsim.cli.arguments import Address, Config, DryRun, Folder, Overrides, PictureFile, Tune
from fedsim.errors import FedsimError
from fedsim.interrupt import EXIT_CODE, quiet_exit, watch

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
    from fedsim.cli.runs import only_run
    from fedsim.config.study_file import load_study
    from fedsim.methods import METHODS

    study = load_study(config, overrides or ())
    only = only_run(study.experiments(METHODS), str(config))
    _carry_out([only], study.folder, dry_run, address)


@app.command()
def sweep(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    address: Address = None,
    tune: Tune = False,
) -> None:
    """Run every cell of a study, and write its report.

    Cells that are finished are not run again: after a kill, or with more seeds in the file, start
    the same command again.

    With --tune the study's `tune` section is run instead: every method gets the same number of
    trials on seeds of their own, chosen on held-out client data, never on test data. What was
    chosen is printed and written to selected.yaml in the study's folder.
    """
    from fedsim.config.study_file import load_study
    from fedsim.methods import METHODS

    study = load_study(config, overrides or ())
    if tune:
        from fedsim.cli import dry_run as plans
        from fedsim.cli import runs

        (plans.describe_tuning if dry_run else runs.tune)(study, address)
    else:
        _carry_out(study.experiments(METHODS), study.folder, dry_run, address)


@app.command()
def resume(folder: Folder, address: Address = None) -> None:
    """Go on with what a study has not finished.

    Each run goes on from its last committed round; runs that failed are tried again.
    """
    from fedsim.driver.plan import read_plan
    from fedsim.storage.remote import local_folder, url_of

    _carry_out(read_plan(folder), local_folder(url_of(folder) or folder), False, address)


for command in (results.report, results.compare, results.costs, results.pack, results.unpack):
    app.command()(command)


@app.command()
def partition(config: Config, overrides: Overrides = None, out: PictureFile = None) -> None:
    """Show how a study splits its data over clients.

    Nothing is trained: a line of statistics per partition, and the samples of each client and
    class.
    """
    from fedsim.cli.partitions import show_partitions
    from fedsim.config.study_file import load_study
    from fedsim.methods import METHODS

    show_partitions(load_study(config, overrides or ()).experiments(METHODS), out)


@app.command()
def doctor(address: Address = None) -> None:
    """Check this machine or cluster before using it.

    Versions, Ray, GPUs, memory, disk, storage that nodes share, and weights; exits with 1 if
    something is wrong.
    """
    from fedsim.cluster.doctor import examine

    if not examine(address):
        raise typer.Exit(1)


def _carry_out(
    experiments: Sequence[Experiment], folder: Path, dry_run: bool, address: str | None
) -> None:
    from fedsim.cli.dry_run import describe
    from fedsim.cli.runs import carry_out

    (describe if dry_run else carry_out)(experiments, folder, address)


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
    """Print an error of usage as other errors; a command without arguments shows its help."""
    context, message = getattr(error, "ctx", None), error.format_message().strip()
    if context is not None and message == context.get_help().strip():
        typer.echo(message, err=True)
        return
    path = context.command_path if context is not None else "fedsim"
    message = message[:1].lower() + message[1:].rstrip(".").replace(". Did you", "; did you")
    typer.echo(f"fedsim: {message}; see `{path} --help`", err=True)
