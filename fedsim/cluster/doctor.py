"""`fedsim doctor`: is this machine, or this cluster, ready for fedsim?

Every check prints one line as soon as it is known, and what to do where it is not well. Nodes are
looked at from inside, by a small task on each.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import ray
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from fedsim.cluster.session import Interrupted, Stop, session
from fedsim.data.store import cache_folder
from fedsim.errors import FedsimError

_DEADLINE_S = 120.0
_LOOK_EVERY_S = 0.2
_GIB = 2**30
_LEAST_DISK, _LITTLE_DISK = _GIB // 2, 5 * _GIB
_LARGE_LOGS = 10 * _GIB
_FEW_FILES = 4096
_FULL_GPU = 0.5

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True)
class Versions:
    """What must be the same on every node."""

    python: str
    fedsim: str
    torch: str
    ray: str

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Look:
    """What a node says of itself; sizes in bytes."""

    host: str
    versions: Versions
    cache: str
    cache_error: str | None
    cache_free: int
    shared_memory: int | None
    open_files: int
    ray_logs: int


class _Findings:
    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self.problems, self.warnings = 0, 0

    def say(self, level: str, what: str, advice: str = "") -> None:
        self.problems += level == "problem"
        self.warnings += level == "warning"
        self._console.print(f"{level:8}", style=_STYLES[level], end=" ")
        self._console.print(what, markup=False)
        if advice:
            self._console.print(f"{'':8} -> {advice}", markup=False, style="bold")

    def sum_up(self) -> bool:
        self._console.print(f"\n{self.problems} problem(s), {self.warnings} warning(s)")
        return self.problems == 0


def examine(address: str | None) -> bool:
    """Check this machine, or the cluster at `address`, and print what was found.

    Returns:
        Whether there is no problem; warnings are none.
    """
    found = _Findings()
    _check_packages(found)
    _check_disk(found, "output folder", Path.cwd())
    began = time.perf_counter()
    try:
        with session(address) as stop:
            address = address or os.environ.get("RAY_ADDRESS")
            what = f"the Ray cluster at {address} answers" if address else "Ray starts here"
            found.say("ok", f"{what}, in {time.perf_counter() - began:.1f} s")
            nodes = [node for node in ray.nodes() if node["Alive"]]
            for node in nodes:
                _check_node(found, node, stop)
            _check_weights(found, stop)
    except Interrupted as error:
        raise KeyboardInterrupt from error
    except FedsimError as error:
        advice = (
            "is the address right, and does `ray status` work there?"
            if address
            else ("does another program hold the ports, or is the temporary folder full?")
        )
        found.say("problem", str(error), advice)
    return found.sum_up()


def _check_packages(found: _Findings) -> None:
    """This process's Python and packages against the ranges that fedsim declares."""
    advice = (
        "install fedsim again: pip install -e . (with -c constraints.txt: what it was tested with)"
    )
    wanted = metadata("fedsim")["Requires-Python"]
    fits = platform.python_version() in SpecifierSet(wanted, prereleases=True)
    found.say(
        "ok" if fits else "problem",
        f"Python {platform.python_version()} (wanted: {wanted})",
        "" if fits else "make a new virtual environment with such a Python",
    )
    wrong, right = [], 0
    for requirement in map(Requirement, requires("fedsim") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing (wanted: {requirement.specifier})")
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            right += 1
        else:
            wrong.append(f"{requirement.name} {installed} (wanted: {requirement.specifier})")
    for what in wrong:
        found.say("problem", what, advice)
    if not wrong:
        found.say("ok", f"{right} packages within their ranges; {_versions()}")


def _check_disk(found: _Findings, name: str, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        found.say("warning", f"{name}: {folder} cannot be written", "give studies output=FOLDER")
        return
    _say_free(found, name, str(folder), shutil.disk_usage(folder).free)


def _say_free(found: _Findings, name: str, folder: str, free: int) -> None:
    level = "problem" if free < _LEAST_DISK else "warning" if free < _LITTLE_DISK else "ok"
    advice = "" if level == "ok" else "make room, or use another disk"
    found.say(level, f"{name}: {folder}, {_gib(free)} free", advice)


def _check_node(found: _Findings, node: dict[str, Any], stop: Stop) -> None:
    has = node["Resources"]
    gpus, store = int(has.get("GPU", 0)), int(has.get("object_store_memory", 0))
    name = f"node {node['NodeManagerHostname']}"
    found.say(
        "ok",
        f"{name}: {has.get('CPU', 0):g} CPU(s), {gpus} GPU(s), {_gib(has.get('memory', 0))} memory, "
        f"{_gib(store)} object store",
    )
    look = _ask(found, f"{name} runs a task", _look, node["NodeID"], stop)
    if look is None:
        return
    if look.versions != _versions():
        found.say(
            "problem",
            f"{name}: {look.versions}; here: {_versions()}",
            "install the same versions on all nodes: fedsim needs them to compute the same bits",
        )
    if look.cache_error:
        advice = (
            "set FEDSIM_CACHE, where Ray is started, to a folder with space that you may write to"
        )
        found.say("problem", f"{name}: cache {look.cache}: {look.cache_error}", advice)
    else:
        _say_free(found, f"{name}: cache", look.cache, look.cache_free)
    if look.shared_memory is not None and look.shared_memory < store:
        found.say(
            "warning",
            f"{name}: /dev/shm has {_gib(look.shared_memory)}, less than the object store",
            "Ray falls back to slow disk: give containers --shm-size, or Ray --object-store-memory",
        )
    few = 0 <= look.open_files < _FEW_FILES
    found.say(
        "warning" if few else "ok",
        f"{name}: {'any number of' if look.open_files < 0 else look.open_files} open files allowed",
        "many actors need more: `ulimit -n 65536` before Ray is started" if few else "",
    )
    full = look.ray_logs > _LARGE_LOGS
    found.say(
        "warning" if full else "ok",
        f"{name}: Ray's logs and leftovers take {_gib(look.ray_logs)}",
        "delete old session_* folders in Ray's temporary folder" if full else "",
    )
    if gpus:
        _check_gpus(found, name, node["NodeID"], gpus, stop)


def _check_gpus(found: _Findings, name: str, node_id: str, gpus: int, stop: Stop) -> None:
    seen = _ask(found, f"{name} gives its GPUs to a task", _look_at_gpus, node_id, stop, gpus)
    if seen is None:
        return
    if len(seen) < gpus:
        advice = "install a torch with CUDA for this driver; until then clients compute on CPUs"
        found.say("problem", f"{name}: Ray has {gpus} GPU(s), torch sees {len(seen)}", advice)
    for title, free, total in seen:
        used = free < _FULL_GPU * total
        found.say(
            "warning" if used else "ok",
            f"{name}: {title}, {_gib(free)} of {_gib(total)} free",
            "another process holds its memory (see nvidia-smi)" if used else "",
        )


def _check_weights(found: _Findings, stop: Stop) -> None:
    if _ask(found, "embedded weights load", _load_weights, None, stop):
        found.say("ok", "embedded weights: tiny-clip loads, tiny-diffusion is there")


def _ask(
    found: _Findings,
    what: str,
    task: Callable[[], Any],
    node_id: str | None,
    stop: Stop,
    gpus: int = 0,
) -> Any:
    """What a task on a node answers; None, and a problem, if it does not."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False) if node_id else "DEFAULT"
    options = {"num_cpus": 0, "num_gpus": gpus, "max_retries": 0}
    future = ray.remote(task).options(scheduling_strategy=strategy, **options).remote()
    deadline = time.monotonic() + _DEADLINE_S
    while not ray.wait([future], timeout=_LOOK_EVERY_S)[0]:
        stop.check()
        if time.monotonic() > deadline:
            ray.cancel(future, force=True)
            advice = "is it busy, or held by other jobs? `ray status` shows them"
            found.say("problem", f"{what}: no answer within {_DEADLINE_S:g} s", advice)
            return None
    try:
        return ray.get(future)
    except RayTaskError as error:
        found.say("problem", f"{what}: {type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        found.say("problem", f"{what}: {str(error).splitlines()[0]}", "Ray's logs say more")
    return None


def _versions() -> Versions:
    return Versions(platform.python_version(), *map(version, ("fedsim", "torch", "ray")))


def _look() -> Look:
    """Runs on the node."""
    cache, error, free = cache_folder(), None, 0
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(b"fedsim")
        free = shutil.disk_usage(cache).free
    except OSError as caught:
        error = caught.strerror or str(caught)
    shm = Path("/dev/shm")
    return Look(
        socket.gethostname(),
        _versions(),
        str(cache),
        error,
        free,
        shutil.disk_usage(shm).total if shm.is_dir() else None,
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        _size(Path(ray.get_runtime_context().worker.node.get_session_dir_path()).parent),
    )


def _look_at_gpus() -> list[tuple[str, int, int]]:
    """Runs on the node: name, free and total bytes of every GPU that torch sees."""
    import torch

    seen: Sequence[int] = range(torch.cuda.device_count())
    return [(torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)) for i in seen]


def _load_weights() -> bool:
    """Runs on a node; raises what is wrong."""
    from fedsim.errors import ModelError
    from fedsim.models.clip import PRETRAINED, TINY_CLIP, load_clip

    load_clip(TINY_CLIP)
    if not (PRETRAINED / "tiny-diffusion" / "model_index.json").is_file():
        raise ModelError("tiny-diffusion is not in this installation; install fedsim again")
    return True


def _size(folder: Path) -> int:
    """Bytes below a folder, of files that may vanish while one counts."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
    return total


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
