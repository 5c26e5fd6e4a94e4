"""`fedsim doctor`: is this machine, or this cluster, ready for fedsim?

Every check prints one line as soon as it is known, and what to do where all is not well.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

import ray
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from fedsim.cluster.inspection import (
    installed_versions,
    load_weights,
    look,
    look_at_gpus,
    why_not_shared,
)
from fedsim.cluster.session import Interrupted, Stop, on_node, session
from fedsim.errors import FedsimError

Level = Literal["ok", "warning", "problem"]

_DEADLINE_S = 120.0
_LOOK_EVERY_S = 0.2
_GIB = 2**30
_LEAST_DISK, _LITTLE_DISK = _GIB // 2, 5 * _GIB
_LARGE_LOGS = 10 * _GIB
_FEW_FILES = 4096
_LITTLE_GPU = 0.5
_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


class _Findings:
    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._seen: list[Level] = []

    def say(self, what: str, level: Level = "ok", advice: str = "") -> None:
        """One line; the advice only where it is needed."""
        self._seen.append(level)
        self._console.print(f"{level:8}", style=_STYLES[level], end=" ")
        self._console.print(what, markup=False)
        if advice and level != "ok":
            self._console.print(f"{'':8} -> {advice}", markup=False, style="bold")

    def sum_up(self) -> bool:
        """Whether there is no problem."""
        problems, warnings = self._seen.count("problem"), self._seen.count("warning")
        self._console.print(f"\n{problems} problem(s), {warnings} warning(s)")
        return problems == 0


def examine(address: str | None) -> bool:
    """Check this machine, or the cluster at `address`, and print what was found.

    Returns:
        Whether there is no problem; warnings are none.
    """
    found = _Findings()
    _check_packages(found)
    _check_output(found)
    address = address or os.environ.get("RAY_ADDRESS")
    began = time.perf_counter()
    try:
        with session(address) as stop:
            what = f"the Ray cluster at {address} answers" if address else "Ray starts here"
            found.say(f"{what}, in {time.perf_counter() - began:.1f} s")
            alive = [node for node in ray.nodes() if node["Alive"]]
            for node in alive:
                _check_node(found, node, stop)
            if address:
                _check_shared(found, alive, stop)
            if _ask(found, "embedded weights", load_weights, None, stop):
                found.say("embedded weights: tiny-clip loads, tiny-diffusion is there")
    except Interrupted as error:
        raise KeyboardInterrupt from error
    except FedsimError as error:
        found.say(str(error).partition("; `fedsim doctor`")[0], "problem", _why_no_ray(address))
    return found.sum_up()


def _why_no_ray(address: str | None) -> str:
    if address:
        return "is the address right, and does `ray status` work there?"
    return "is the temporary folder full or not writable, or its path longer than about 60 letters?"


def _check_packages(found: _Findings) -> None:
    """This process's Python and packages against the ranges that fedsim declares."""
    wanted = metadata("fedsim")["Requires-Python"]
    fits = platform.python_version() in SpecifierSet(wanted, prereleases=True)
    found.say(
        f"Python {platform.python_version()} (wanted: {wanted})",
        "ok" if fits else "problem",
        "make a new virtual environment with such a Python",
    )
    right = 0
    for requirement in map(Requirement, requires("fedsim") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
            fits = requirement.specifier.contains(installed, prereleases=True)
        except PackageNotFoundError:
            installed, fits = "is missing", False
        right += fits
        if not fits:
            what = f"{requirement.name} {installed} (wanted: {requirement.specifier})"
            found.say(what, "problem", "install fedsim again: pip install -c constraints.txt -e .")
    found.say(f"{right} packages within their ranges: {installed_versions()}, ...")


def _output_folder() -> Path:
    """Where studies go unless they say otherwise, or where that folder would be made."""
    return Path("runs") if Path("runs").is_dir() else Path.cwd()


def _check_output(found: _Findings) -> None:
    folder = _output_folder()
    if os.access(folder, os.W_OK):
        _say_free(found, "output folder", str(folder.resolve()), shutil.disk_usage(folder).free)
    else:
        found.say(f"output folder: {folder} cannot be written", "warning", "use output=FOLDER")


def _check_shared(found: _Findings, nodes: Iterable[dict[str, Any]], stop: Stop) -> None:
    """Whether every node sees what is written here: a coordinator may run, and write, on any.

    Only warned of: a study whose `output` is a URL needs no such folder.
    """
    folder = _output_folder().resolve()
    token = folder / f".fedsim-doctor-{uuid.uuid4().hex}"  # new: no node remembers it as missing
    try:
        token.touch()
    except OSError:  # said already
        return
    try:
        for node in nodes:
            what = f"node {node['NodeManagerHostname']}: output folder {folder}"
            why = _ask(found, what, lambda: why_not_shared(token), node["NodeID"], stop)
            if why is not None:
                found.say(
                    f"{what} {why or 'is shared'}",
                    "warning" if why else "ok",
                    "mount it there under the same path, or use output=URL, as in s3://bucket/runs",
                )
    finally:
        token.unlink(missing_ok=True)


def _say_free(found: _Findings, name: str, folder: str, free: int) -> None:
    level: Level = "problem" if free < _LEAST_DISK else "warning" if free < _LITTLE_DISK else "ok"
    found.say(f"{name}: {folder}, {_gib(free)} free", level, "make room, or use another disk")


def _check_node(found: _Findings, node: dict[str, Any], stop: Stop) -> None:
    has, name = node["Resources"], f"node {node['NodeManagerHostname']}"
    gpus, store = int(has.get("GPU", 0)), int(has.get("object_store_memory", 0))
    found.say(
        f"{name}: {has.get('CPU', 0):g} CPU(s), {gpus} GPU(s), "
        f"{_gib(has.get('memory', 0))} memory, {_gib(store)} object store"
    )
    seen = _ask(found, f"{name}: a small task", look, node["NodeID"], stop)
    if seen is None:
        return
    found.say(
        f"{name}: {seen.versions}",
        "ok" if seen.versions == installed_versions() else "problem",
        f"here: {installed_versions()}; all nodes need the same, to compute the same bits",
    )
    if seen.cache_error:
        advice = "set FEDSIM_CACHE, before Ray starts, to a folder with space that you may write to"
        found.say(f"{name}: cache folder {seen.cache}: {seen.cache_error}", "problem", advice)
    else:
        _say_free(found, f"{name}: cache folder", seen.cache, seen.cache_free)
    if seen.shared_memory is not None:
        found.say(
            f"{name}: /dev/shm of {_gib(seen.shared_memory)}",
            "warning" if seen.shared_memory < store else "ok",
            "smaller than the object store, so Ray uses slow disk: give the container --shm-size",
        )
    found.say(
        f"{name}: {'any number of' if seen.open_files < 0 else seen.open_files} open files allowed",
        "warning" if 0 <= seen.open_files < _FEW_FILES else "ok",
        "many actors need more: `ulimit -n 65536` before Ray starts",
    )
    found.say(
        f"{name}: Ray's logs and leftovers take {_gib(seen.ray_logs)}",
        "warning" if seen.ray_logs > _LARGE_LOGS else "ok",
        "delete the old session_* folders in Ray's temporary folder",
    )
    if gpus:
        _check_gpus(found, name, node["NodeID"], gpus, stop)


def _check_gpus(found: _Findings, name: str, node_id: str, gpus: int, stop: Stop) -> None:
    seen = _ask(found, f"{name}: a task with its GPUs", look_at_gpus, node_id, stop, gpus)
    if seen is None:
        return
    if len(seen) != gpus:
        advice = "install a torch with CUDA for this driver; until then clients compute on CPUs"
        found.say(f"{name}: Ray has {gpus} GPU(s), torch sees {len(seen)}", "problem", advice)
    for title, free, total in seen:
        found.say(
            f"{name}: {title}, {_gib(free)} of {_gib(total)} free",
            "warning" if free < _LITTLE_GPU * total else "ok",
            "another process holds its memory: `nvidia-smi` shows which",
        )


def _ask(
    found: _Findings,
    what: str,
    task: Callable[[], Any],
    node_id: str | None,
    stop: Stop,
    gpus: int = 0,
) -> Any:
    """What a task on a node answers; None, and a problem, if it does not."""
    future = on_node(node_id, task, gpus).remote()
    deadline = time.monotonic() + _DEADLINE_S
    while not ray.wait([future], timeout=_LOOK_EVERY_S)[0]:
        stop.check()
        if time.monotonic() > deadline:
            ray.cancel(future, force=True)
            advice = "other jobs may hold the node: `ray status` shows them"
            found.say(f"{what}: no answer within {_DEADLINE_S:g} s", "problem", advice)
            return None
    try:
        return ray.get(future)
    except RayTaskError as error:
        found.say(f"{what}: {type(error.cause).__name__}: {error.cause}", "problem")
    except RayError as error:
        found.say(f"{what}: {str(error).splitlines()[0]}", "problem", "Ray's logs say more")
    return None


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
