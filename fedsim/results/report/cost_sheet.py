"""The cost of a study, by partition and method: bytes, FLOPs, memory, time, and money if asked.

Bytes and FLOPs are those of a deployment; seconds are those of the machine that simulated it. The
server's time is aggregation and its own work after it (distillation, training on generated images).
Evaluation is left out, since it belongs to the study. Loading, encoding and generating images are
left out, since they are done once and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import Field, ValidationError

from fedsim.config.base import Section
from fedsim.config.problems import messages, shown
from fedsim.errors import ConfigError, ResultsError
from fedsim.results.analysis.named_runs import CELL, final_runs, setting
from fedsim.results.report.grid import Grid, grids_by_cell
from fedsim.results.report.numbers import human_bytes, human_flops, human_time
from fedsim.results.report.terminal import layout, wrapped
from fedsim.results.study import Study

_GB = 1e9  # as it is sold
_HOUR = 3600.0


class Prices(Section):
    """Prices; whatever has none is free."""

    currency: str = "EUR"
    per_gb_sent: float = Field(0.0, ge=0)
    """10^9 bytes over the network, either way."""
    per_gpu_hour: float = Field(0.0, ge=0)
    per_cpu_hour: float = Field(0.0, ge=0)
    """One core for an hour."""


def read_prices(path: Path) -> Prices:
    """Prices from a YAML file.

    Raises:
        ConfigError: The file is missing, is no YAML mapping, or holds anything but prices.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"prices {path} cannot be read ({reason})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"prices {path} is not valid YAML{where}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"prices {path} holds {shown(tree)}: give a mapping, such as `per_gpu_hour: 2.5`"
        )
    try:
        return Prices.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([f"{path}: {line}" for line in messages(error, Prices)]) from error


def cost_sheet(study: Study, prices: Prices | None = None) -> pd.DataFrame:
    """The cost of the finished runs of each method, means per run.

    Returns:
        One row per data set, partition and method: `dataset, partition, method, num_runs,
        num_clients, rounds, bytes_up, bytes_down` (all clients together, set-up included),
        `bytes_up_per_client, bytes_down_per_client` (of all clients of the split), `client_flops`
        (all together), `client_flops_per_round` (of one client in a round), `peak_memory_bytes`
        (of a GPU, the largest of any run; missing on CPU), `peak_resident_bytes` (the same of a
        process that trains clients on CPU; missing on GPU), `client_s, server_s` (device time),
        `gpu_hours, cpu_hours`, and with prices `sent_price, gpu_price, cpu_price, price` and
        `currency`.

    Raises:
        ResultsError: No run is finished.
    """
    runs = final_runs(study)
    runs = runs[runs["status"] == "finished"]
    if runs.empty:
        raise ResultsError(f"no run of {study.name} is finished: there is nothing to add up")
    each = _of_runs(study, runs)
    cells = each.groupby([*CELL, "method"], sort=False)
    frame = cells[["num_clients", *_MEANS]].mean()
    frame.insert(0, "num_runs", cells.size())
    frame[_PEAKS] = cells[_PEAKS].max().astype("float64")
    if prices is not None:
        sent = (frame["bytes_up"] + frame["bytes_down"]) / _GB
        frame["sent_price"] = sent * prices.per_gb_sent
        frame["gpu_price"] = frame["gpu_hours"] * prices.per_gpu_hour
        frame["cpu_price"] = frame["cpu_hours"] * prices.per_cpu_hour
        frame["price"] = frame[["sent_price", "gpu_price", "cpu_price"]].sum(axis=1)
        frame["currency"] = prices.currency
    sheet: pd.DataFrame = frame.reset_index()
    return sheet


NOTE = (
    "Means per finished run. Each client: mean over all clients of the split, set-up included; "
    "FLOP: local training in one round. Clients and server: time on the machine it was simulated "
    "on, without evaluation and set-up. GPU: a client's share as asked for, all of one for auto. "
    "Process memory: most that was resident where a group of clients trained on CPU, libraries and "
    "data included; an upper bound."
)


def cost_grids(sheet: pd.DataFrame, part: Literal["client", "all"] | None = None) -> list[Grid]:
    """A cost sheet as tables to read, of each client, of all together or (by default) both."""
    currency = str(sheet["currency"].iloc[0]) if "currency" in sheet else ""
    columns: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("client", "bytes_up_per_client", "up", human_bytes),
        ("client", "bytes_down_per_client", "down", human_bytes),
        ("client", "client_flops_per_round", "FLOP per round", human_flops),
        ("client", "peak_memory_bytes", "memory", human_bytes),
        ("client", "peak_resident_bytes", "process memory", human_bytes),
        ("all", "bytes_up", "up", human_bytes),
        ("all", "bytes_down", "down", human_bytes),
        ("all", "client_flops", "FLOP", human_flops),
        ("all", "client_s", "clients", human_time),
        ("all", "server_s", "server", human_time),
        ("all", "gpu_hours", "GPU", lambda hours: human_time(hours * _HOUR)),
        ("all", "cpu_hours", "CPU", lambda hours: human_time(hours * _HOUR)),
        ("all", "price", currency, _money),
    ]
    titles = {"client": "each client: ", "all": "all: "} if part is None else {}
    shown = [
        (name, titles.get(which, "") + title, text)
        for which, name, title, text in columns
        if part in (None, which) and name in sheet
        if (sheet[name].fillna(0) != 0).any()  # a column of nothing says nothing
    ]
    return grids_by_cell(
        sheet,
        [title for _, title, _ in shown],
        lambda row: [text(float(row[name].iloc[0])) for name, _, text in shown],
    )


def format_costs(sheet: pd.DataFrame) -> str:
    """A cost sheet for the terminal."""
    lines = []
    parts: dict[Literal["client", "all"], str] = {"client": "Each client", "all": "All together"}
    for part, title in parts.items():
        lines += [title, *layout(cost_grids(sheet, part)), ""]
    return "\n".join([*lines, wrapped(NOTE)])


def _money(amount: float) -> str:
    if not amount > 0:
        return "-" if amount != amount else "0"
    return "<0.0001" if amount < 5e-5 else f"{amount:.4f}" if amount < 1 else f"{amount:.2f}"


_MEANS = [
    "rounds", "bytes_up", "bytes_down", "bytes_up_per_client", "bytes_down_per_client",
    "client_flops", "client_flops_per_round", "client_s", "server_s", "gpu_hours", "cpu_hours",
]  # fmt: skip
_PEAKS = ["peak_memory_bytes", "peak_resident_bytes"]


def _of_runs(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """The numbers of the sheet for every run."""
    rounds, clients = study.rounds, study.clients[study.clients["round"] > 0]
    on_gpu = clients["device"].astype(str).str.startswith("cuda")
    parts = {
        "rounds": rounds.groupby("run_id")["round"].max(),
        "bytes_up": _sum(rounds, "bytes_up"),
        "bytes_down": _sum(rounds, "bytes_down"),
        "client_flops": _sum(rounds, "train_flops"),
        "server_s": _sum(rounds, "aggregate_s") + _sum(rounds, "distill_s"),
        "client_s": _sum(clients, "train_s"),
        "client_gpu_s": _sum(clients[on_gpu], "train_s"),
        "updates": _sum(rounds, "num_clients_ok"),
        "peak_memory_bytes": pd.concat(
            [table.groupby("run_id")["peak_memory_bytes"].max() for table in (rounds, clients)],
            axis=1,
        ).max(axis=1),
        "peak_resident_bytes": clients.groupby("run_id")["peak_resident_bytes"].max(),
    }
    each = runs.set_index("run_id").drop(columns="num_clients")
    each = each[[*CELL, "method", "device"]].assign(
        num_clients=runs.set_index("run_id")["num_clients"],
        **{name: part.reindex(each.index) for name, part in parts.items()},
    )
    known = [name for name in parts if name not in _PEAKS]  # there, missing means none
    each[known] = each[known].astype("float64").fillna(0.0)
    for way in ("up", "down"):
        each[f"bytes_{way}_per_client"] = each[f"bytes_{way}"] / each["num_clients"]
    each["client_flops_per_round"] = (each["client_flops"] / each["updates"]).where(
        each["updates"] > 0, 0.0
    )
    share, cores = _held(runs)
    server_gpu_s = each["server_s"].where(each["device"] == "cuda", 0.0)
    gpu_s = each["client_gpu_s"] * share + server_gpu_s
    cpu_s = (each["client_s"] - each["client_gpu_s"] + each["server_s"] - server_gpu_s) * cores
    return each.assign(gpu_hours=gpu_s / _HOUR, cpu_hours=cpu_s / _HOUR)


def _sum(table: pd.DataFrame, column: str) -> pd.Series:
    return table[column].astype("float64").groupby(table["run_id"]).sum()


def _held(runs: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Resources of a client actor, by run id: its share of a GPU, and CPU cores."""
    names = ("resources.gpus_per_client", "resources.cpus_per_client", "engine.threads")
    share, cores, threads = (
        pd.to_numeric(setting(runs, name), errors="coerce").fillna(1.0)  # `auto`, or not said
        for name in names
    )
    by_run = runs["run_id"]
    return share.set_axis(by_run), cores.clip(lower=threads).set_axis(by_run)
