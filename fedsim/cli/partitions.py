"""A study's partitions of its data over clients, as a table and a picture, without training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedsim.cli.display import output
from fedsim.config import Experiment
from fedsim.data.partition.make import Partition
from fedsim.driver.data_checks import each_partition
from fedsim.errors import ConfigError, ResultsError

_SHADES = " .:-=+*#%@"
_MOST_ROWS = 30
_PICTURES = (".png", ".pdf", ".svg")


class View(NamedTuple):
    """A partition to show; `domains` has a text per client, or is empty without domains."""

    partition: Partition
    classnames: tuple[str, ...]
    domains: tuple[str, ...]


def show_partitions(experiments: Sequence[Experiment], picture: Path | None = None) -> None:
    """Print every distinct partition, and draw them into a file.

    Raises:
        ConfigError: The file's ending is not that of a picture.
        DataError: The data is wrong, or a partition cannot be made from it.
        ResultsError: The file cannot be written.
    """
    if picture is not None:
        _check_picture(picture)
    views = _views(experiments)
    _print(views, output())
    if picture is not None:
        _draw(views, picture)
        typer.echo(f"drawn into {picture}")


def _views(experiments: Sequence[Experiment]) -> dict[str, View]:
    """Every distinct partition of some experiments, by name, in their order."""
    labels, found = _labels(experiments), dict[int, tuple[str, View]]()
    for position, data, split in each_partition(experiments):
        name = f"{labels[position]}, seed {experiments[position].partition_seed}"
        domains = data.train.domains
        indices = split.partition.indices if domains is not None else ()
        said = tuple(_domains(domains, rows, data.domain_names) for rows in indices)
        found[position] = name, View(split.partition, data.classnames, said)
    views: dict[str, View] = {}
    for _, (name, view) in sorted(found.items()):
        views.setdefault(name, view)
    return views


def _domains(domains: np.ndarray | None, rows: np.ndarray, names: Sequence[str]) -> str:
    """A client's domains and their numbers of samples, the most frequent first."""
    assert domains is not None
    counts = np.bincount(domains[rows], minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{names[i]} {counts[i]}" for i in order if counts[i])


def _labels(experiments: Sequence[Experiment]) -> list[str]:
    """The partitions' names; if two of one name differ, with the settings that differ."""
    labels = [config.partition.label for config in experiments]
    flat = [config.flat() for config in experiments]
    for key in flat[0] if flat else ():
        section, _, leaf = key.partition(".")
        if section not in ("data", "partition") or key == "partition.seed":
            continue
        said = "{} clients" if key == "partition.num_clients" else f"{leaf}={{}}"
        values = [str(each[key]) for each in flat]
        of_label = {
            name: {v for n, v in zip(labels, values, strict=True) if n == name}
            for name in set(labels)
        }
        labels = [
            f"{name}, {said.format(value)}" if len(of_label[name]) > 1 else name
            for name, value in zip(labels, values, strict=True)
        ]
    return labels


def _print(views: Mapping[str, View], console: Console) -> None:
    """One line of statistics per partition, and class counts of the first of each kind."""
    table = Table(title="How the training samples are split over clients", box=box.SIMPLE_HEAD)
    table.add_column("partition", overflow="fold")
    for column in ("clients", "min/median/max", "TV", "classes", "Gini"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, (partition, *_) in views.items():
        s = partition.statistics
        table.add_row(
            name,
            str(partition.num_clients),
            f"{s.size_min}/{s.size_median:g}/{s.size_max}",
            f"{s.total_variation:.3f}",
            f"{s.effective_classes:.2f}",
            f"{s.size_gini:.3f}",
        )
    console.print(table)
    console.print(
        "min/median/max: samples per client; TV: mean total variation to the global labels; "
        "classes: mean effective classes per client; Gini: of client sizes",
        highlight=False,
    )
    shown: set[str] = set()
    for name, view in views.items():
        kind = name.rpartition(",")[0]
        if kind not in shown:
            shown.add(kind)
            _print_counts(name, view, console)
        for line in view.partition.log:
            console.print(f"  {name}: {line}", markup=False, soft_wrap=True)


def _print_counts(name: str, view: View, console: Console) -> None:
    """Clients as rows, classes as columns; darker is more of the class."""
    partition, classnames, domains = view
    counts = partition.label_counts[:_MOST_ROWS]
    largest = max(1, counts.max())
    console.print(f"\n{name}: samples per client (row) and class (column)", markup=False)
    for client, row in enumerate(counts):
        if len(classnames) <= 12:
            cells = "".join(f"{count:>6}" for count in row)
        else:
            level = np.ceil(row / largest * (len(_SHADES) - 1)).astype(int)
            cells = "".join(_SHADES[i] for i in level)
        line = f"  client {client:>4} {cells}  = {row.sum()}"
        if domains:
            line += f"  {domains[client]}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if partition.num_clients > _MOST_ROWS:
        more = partition.num_clients - _MOST_ROWS
        console.print(f"  ... and {more} more clients", highlight=False)


def _check_picture(path: Path) -> None:
    """Refuse a file that cannot be written, before any data is read.

    Raises:
        ConfigError: The ending is not that of a picture.
        ResultsError: The file cannot be written.
    """
    if path.suffix.lower() not in _PICTURES:
        raise ConfigError(f"--out {path}: the file's ending must be {' or '.join(_PICTURES)}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        raise ResultsError(f"--out {path} is a folder: give a file in it")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ResultsError(f"--out {path} cannot be written: {above} is no folder to write to")


def _draw(views: Mapping[str, View], path: Path) -> None:
    """The same as a picture (see `fedsim.results.report.client_figures`)."""
    from fedsim.results.report.client_figures import partition_figure

    counts = {name: view.partition.label_counts for name, view in views.items()}
    figure = partition_figure(counts, next(iter(views.values())).classnames)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ResultsError(f"--out {path} cannot be written ({error.strerror})") from error
