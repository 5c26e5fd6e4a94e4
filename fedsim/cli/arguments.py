"""Arguments and options of `fedsim`'s commands that are long, or that several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Address",
    "Archive",
    "Config",
    "Csv",
    "DryRun",
    "Folder",
    "Folders",
    "Latex",
    "Margin",
    "NewFolder",
    "OnlyMethods",
    "OnlyPartitions",
    "Overrides",
    "Reference",
]

Config = Annotated[
    Path, typer.Argument(metavar="STUDY.yaml", help="The study: methods, partitions, seeds.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings to change: train.lr=0.1, seed=3 (only this seed), method=cachefl (only "
        "this method), 'seeds=[0, 1]'. partition.KEY=VALUE replaces the study's partitions.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the runs, the bytes they would send and where they would be placed; run "
        "nothing and write nothing into the output folder.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Use a running Ray cluster: its address, or 'auto' on one of its machines. Without "
        "it, a local Ray is started (RAY_ADDRESS works, too).",
        show_default=False,
    ),
]
Csv = Annotated[
    Path | None,
    typer.Option(
        "--csv",
        metavar="FILE",
        help="Also write the numbers as CSV, unrounded, one row per method and partition.",
        show_default=False,
    ),
]
Latex = Annotated[
    Path | None,
    typer.Option(
        "--latex",
        metavar="FILE",
        help="Also write a LaTeX table, with marks for the best and for what is significant.",
        show_default=False,
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Compare the others with this method; by default that of the first study.",
        show_default=False,
    ),
]
OnlyMethods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        help="Compare only this method with the reference; may be given again. p values are "
        "corrected over what is compared, so choose before you look.",
        show_default=False,
    ),
]
OnlyPartitions = Annotated[
    list[str] | None,
    typer.Option(
        "--partition",
        metavar="NAME",
        help="Only in this partition, such as 'dirichlet_label 0.1'; may be given again.",
        show_default=False,
    ),
]
Margin = Annotated[
    str | None,
    typer.Option(
        metavar="POINTS",
        help="Also test which methods are no more than this far below the best other one.",
        show_default=False,
    ),
]


Archive = Annotated[
    Path, typer.Argument(metavar="FILE.zip", help="The file that holds finished runs.")
]


def _to_read(text: str) -> Path:
    from fedsim.storage.remote import local_folder

    return local_folder(text, reading=True)


Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        parser=_to_read,
        help="A study's output folder, such as runs/quickstart, or its URL.",
    ),
]
Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER",
        parser=_to_read,
        help="Output folders of studies, such as runs/first, or their URLs.",
    ),
]


NewFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="FOLDER",
        help="Where to, a folder of this machine; by default runs/STUDY.",
        show_default=False,
    ),
]
