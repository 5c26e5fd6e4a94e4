"""Arguments and options of `fedsim`'s commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(metavar: str, help: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


def _argument(metavar: str, help: str, parser: Any = None) -> Any:
    return typer.Argument(metavar=metavar, help=help, parser=parser, show_default=False)


def _study(text: str) -> Path:
    """The folder of a study that has been started, or a copy of it on this machine."""
    from fedsim.driver.plan import find_study
    from fedsim.storage.remote import local_folder

    folder = local_folder(text, reading=True)
    find_study(folder)
    return folder


Config = Annotated[Path, _argument("STUDY.yaml", "The study: methods, partitions, seeds.")]
Overrides = Annotated[
    list[str] | None,
    _argument(
        "KEY=VALUE",
        "Settings to change: train.lr=0.1, seed=3 (only this seed), method=cachefl (only this "
        "method), 'seeds=[0, 1]'. partition.KEY=VALUE replaces the study's partitions.",
    ),
]
Folder = Annotated[
    Path,
    _argument("FOLDER", "A study's output folder, such as runs/quickstart, or its URL.", _study),
]
Folders = Annotated[
    list[Path],
    _argument("FOLDER", "Output folders of studies, such as runs/first, or their URLs.", _study),
]
Archive = Annotated[Path, _argument("FILE.zip", "The file that holds finished runs.")]
NewFolder = Annotated[
    Path | None,
    _argument("FOLDER", "Where to, a folder of this machine; by default runs/STUDY."),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the runs, the bytes they would send and where they would be placed; run "
        "nothing and write nothing into the output folder.",
    ),
]
Tune = Annotated[
    bool,
    typer.Option(
        "--tune", help="Choose hyper-parameters on held-out client data instead (see above)."
    ),
]
Address = Annotated[
    str | None,
    _option(
        "HOST:PORT",
        "Use a running Ray cluster: its address, or 'auto' on one of its machines. Without it, a "
        "local Ray is started (RAY_ADDRESS works, too).",
    ),
]
PictureFile = Annotated[Path | None, _option("FILE.png", "Also draw the splits into this file.")]
PricesFile = Annotated[
    Path | None,
    _option(
        "PRICES.yaml",
        "Also reckon money: currency, per_gb_sent, per_gpu_hour, per_cpu_hour.",
    ),
]
Csv = Annotated[
    Path | None,
    _option(
        "FILE",
        "Also write the numbers as CSV, unrounded, one row per method and partition.",
        "--csv",
    ),
]
Latex = Annotated[
    Path | None,
    _option(
        "FILE",
        "Also write a LaTeX table, with marks for the best and for what is significant.",
        "--latex",
    ),
]
Reference = Annotated[
    str | None,
    _option("METHOD", "Compare the others with this method; by default that of the first study."),
]
OnlyMethods = Annotated[
    list[str] | None,
    _option(
        "METHOD",
        "Compare only this method with the reference; may be given again. p values are corrected "
        "over what is compared, so choose before you look.",
        "--method",
    ),
]
OnlyPartitions = Annotated[
    list[str] | None,
    _option(
        "NAME",
        "Only in this partition, such as 'dirichlet_label 0.1'; may be given again.",
        "--partition",
    ),
]
Margin = Annotated[
    str | None,
    _option(
        "POINTS", "Also test which methods are no more than this far below the best other one."
    ),
]
