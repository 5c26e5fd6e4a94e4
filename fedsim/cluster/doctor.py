"""`fedsim doctor`: is this machine, or this cluster, ready for fedsim?

Every check is a finding: a line, printed as soon as it is known, and advice where something is
wrong. Small tasks on the nodes find what only a node itself can see.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.exceptions import RayError, RayTaskError
from rich.console import Console
from rich.text import Text

from fedsim.cluster.session import Stop, on_node, session
from fedsim.errors import FedsimError
from fedsim.storage.remote import cache_folder

Level = Literal["ok", "warning", "problem"]

_DEADLINE_S = 120.0
_GIB = 2**30
_LEAST_DISK, _LITTLE_DISK = _GIB // 2, 5 * _GIB
_LARGE_LOGS = 10 * _GIB
_FEW_FILES = 4096
_LITTLE_GPU = 0.5
_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


class Finding(NamedTuple):
    """One line; the advice is shown only where the level is not `ok`."""

    what: str
    level: Level = "ok"
    advice: str = ""


def _judged(what: str, wrong: bool, advice: str, level: Level = "warning") -> Finding:
    return Finding(what, level if wrong else "ok", advice)


def examine(address: str | None) -> bool:
    """Check this machine, or the cluster at `address`, and print what was found.

    Returns:
        Whether there is no problem; warnings do not count.
    """
    return _show(_findings(address or os.environ.get("RAY_ADDRESS")))


def _show(findings: Iterable[Finding]) -> bool:
    """Print findings as they come; returns whether there is no problem."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    levels: Counter[str] = Counter()
    for what, level, advice in findings:
        levels[level] += 1
        console.print(Text(f"{level:8}", _STYLES[level]), what)
        if advice and level != "ok":
            console.print(Text(f"{'':8} -> {advice}", "bold"))
    console.print(f"\n{levels['problem']} problem(s), {levels['warning']} warning(s)")
    return not levels["problem"]


def _findings(address: str | None) -> Iterator[Finding]:
    yield from _packages()
    yield _output()
    began = time.perf_counter()
    try:
        with session(address) as stop:
            what = f"the Ray cluster at {address} answers" if address else "Ray starts here"
            yield Finding(f"{what}, in {time.perf_counter() - began:.1f} s")
            alive = [node for node in ray.nodes() if node["Alive"]]
            for node in alive:
                yield from _node(node, stop)
            if address:
                yield from _shared(alive, stop)
            yield from _ask("embedded weights", None, stop, load_weights)
    except FedsimError as error:
        advice = (
            "is the address right, and does `ray status` work there?"
            if address
            else "is the temporary folder full or not writable, or its path longer than about 60 "
            "letters?"
        )
        yield Finding(str(error).partition("; `fedsim doctor`")[0], "problem", advice)


def installed_versions() -> str:
    """Versions that must be the same on every node, from metadata; nothing is imported."""
    packages = [f"{name} {version(name)}" for name in ("fedsim", "torch", "ray")]
    return ", ".join([f"python {platform.python_version()}", *packages])


def _packages() -> Iterator[Finding]:
    """This process's Python and packages against the ranges that fedsim declares."""
    wanted = metadata("fedsim")["Requires-Python"]
    fits = platform.python_version() in SpecifierSet(wanted, prereleases=True)
    what = f"Python {platform.python_version()} (wanted: {wanted})"
    yield _judged(what, not fits, "make a new virtual environment with such a Python", "problem")
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
            yield Finding(
                what, "problem", "install fedsim again: pip install -c constraints.txt -e ."
            )
    yield Finding(f"{right} packages within their ranges: {installed_versions()}, ...")


def _output_folder() -> Path:
    """The default folder of studies, or the one in which it would be made."""
    return Path("runs") if Path("runs").is_dir() else Path.cwd()


def _output() -> Finding:
    folder = _output_folder()
    if os.access(folder, os.W_OK):
        return _free("output folder", folder.resolve())
    return Finding(f"output folder: {folder} cannot be written", "warning", "use output=FOLDER")


def _free(name: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    level: Level = "problem" if free < _LEAST_DISK else "warning" if free < _LITTLE_DISK else "ok"
    return Finding(f"{name}: {folder}, {_gib(free)} free", level, "make room, or use another disk")


def _shared(nodes: Iterable[dict[str, Any]], stop: Stop) -> Iterator[Finding]:
    """Whether every node sees files written here, because a coordinator may run on any.

    This is a warning only: a study whose `output` is a URL needs no such folder.
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
            yield from _ask(what, node["NodeID"], stop, see_shared, what, token)
    finally:
        token.unlink(missing_ok=True)


def see_shared(what: str, token: Path) -> list[Finding]:
    """On a node: whether it sees a file just written elsewhere, and may write beside it."""
    try:
        token.read_bytes()
        why = "" if os.access(token.parent, os.W_OK) else "cannot be written"
    except FileNotFoundError:
        why = "does not show what is written here"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    advice = "mount it there under the same path, or use output=URL, as in s3://bucket/runs"
    return [_judged(f"{what} {why or 'is shared'}", bool(why), advice)]


def _node(node: dict[str, Any], stop: Stop) -> Iterator[Finding]:
    has, name = node["Resources"], f"node {node['NodeManagerHostname']}"
    gpus, store = int(has.get("GPU", 0)), int(has.get("object_store_memory", 0))
    yield Finding(
        f"{name}: {has.get('CPU', 0):g} CPU(s), {gpus} GPU(s), "
        f"{_gib(has.get('memory', 0))} memory, {_gib(store)} object store"
    )
    what, there = f"{name}: a small task", node["NodeID"]
    seen = _ask(what, there, stop, look, name, installed_versions(), store)
    yield from seen
    if gpus and len(seen) > 1:  # a node that did not answer is not asked again
        what = f"{name}: a task with its GPUs"
        yield from _ask(what, there, stop, look_at_gpus, name, gpus, gpus=gpus)


def look(name: str, versions: str, store: int) -> list[Finding]:
    """On a node: are its versions those of the others, and has it room?"""
    here, shared = installed_versions(), Path("/dev/shm")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # -1 is no limit
    logs = _size(Path(ray.get_runtime_context().worker.node.get_session_dir_path()).parent)
    found = [
        _judged(
            f"{name}: {here}",
            here != versions,
            f"here: {versions}; all nodes need the same, to compute the same bits",
            "problem",
        ),
        _cache(name),
        _judged(
            f"{name}: {'any number of' if files < 0 else files} open files allowed",
            0 <= files < _FEW_FILES,
            "many actors need more: `ulimit -n 65536` before Ray starts",
        ),
        _judged(
            f"{name}: Ray's logs and leftovers take {_gib(logs)}",
            logs > _LARGE_LOGS,
            "delete the old session_* folders in Ray's temporary folder",
        ),
    ]
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        advice = "smaller than the object store, so Ray uses slow disk: give the container "
        advice += "--shm-size"
        found.append(_judged(f"{name}: /dev/shm of {_gib(size)}", size < store, advice))
    return found


def _cache(name: str) -> Finding:
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(b"fedsim")
        return _free(f"{name}: cache folder", cache)
    except OSError as error:
        advice = "set FEDSIM_CACHE, before Ray starts, to a folder with space that you may write to"
        what = f"{name}: cache folder {cache}: {error.strerror or error}"
        return Finding(what, "problem", advice)


def look_at_gpus(name: str, gpus: int) -> list[Finding]:
    """On a node: does torch see the GPUs that Ray counts, and are they free?"""
    import torch

    count = torch.cuda.device_count()
    advice = "install a torch with CUDA for this driver; until then clients compute on CPUs"
    what = f"{name}: Ray has {gpus} GPU(s), torch sees {count}"
    found = [] if count == gpus else [Finding(what, "problem", advice)]
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        title = torch.cuda.get_device_name(number)
        what = f"{name}: {title}, {_gib(free)} of {_gib(total)} free"
        advice = "another process holds its memory: `nvidia-smi` shows which"
        found.append(_judged(what, free < _LITTLE_GPU * total, advice))
    return found


def load_weights() -> list[Finding]:
    """Load the embedded models.

    Raises:
        ModelError: They cannot be loaded.
    """
    from fedsim.errors import ModelError
    from fedsim.models.clip import PRETRAINED, TINY_CLIP, load_clip

    load_clip(TINY_CLIP)
    if not (PRETRAINED / "tiny-diffusion" / "model_index.json").is_file():
        raise ModelError("tiny-diffusion is not in this installation; install fedsim again")
    return [Finding("embedded weights: tiny-clip loads, tiny-diffusion is there")]


def _ask(
    what: str,
    node_id: str | None,
    stop: Stop,
    task: Callable[..., list[Finding]],
    *given: Any,
    gpus: int = 0,
) -> list[Finding]:
    """The findings of a task on a node, or one that says why there are none."""
    future = on_node(node_id, task, gpus).remote(*given)
    if not stop.wait(future, _DEADLINE_S):
        ray.cancel(future, force=True)
        advice = "other jobs may hold the node: `ray status` shows them"
        return [Finding(f"{what}: no answer within {_DEADLINE_S:g} s", "problem", advice)]
    try:
        return ray.get(future)
    except RayTaskError as error:
        return [Finding(f"{what}: {type(error.cause).__name__}: {error.cause}", "problem")]
    except RayError as error:
        return [Finding(f"{what}: {str(error).splitlines()[0]}", "problem", "Ray's logs say more")]


def _size(folder: Path) -> int:
    """Bytes below a folder whose files may vanish meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
    return total


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
