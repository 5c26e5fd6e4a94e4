"""What a node says of itself: small tasks that `fedsim doctor` runs on every node."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import ray

from fedsim.storage.remote import cache_folder


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
    """One node, seen from inside. Sizes in bytes.

    Attributes:
        versions: Installed there.
        cache: Its cache folder.
        cache_error: Why that cannot be written, or None.
        cache_free: Free on its disk.
        shared_memory: Size of /dev/shm, where there is one.
        open_files: Limit of a process; -1 is none.
        ray_logs: Ray's temporary folder.
    """

    versions: Versions
    cache: str
    cache_error: str | None
    cache_free: int
    shared_memory: int | None
    open_files: int
    ray_logs: int


def installed_versions() -> Versions:
    """Read from the packages' metadata; nothing is imported."""
    return Versions(platform.python_version(), *map(version, ("fedsim", "torch", "ray")))


def look() -> Look:
    """Look at the node that this runs on."""
    cache, error, free = cache_folder(), None, 0
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(b"fedsim")
        free = shutil.disk_usage(cache).free
    except OSError as caught:
        error = caught.strerror or str(caught)
    shared = Path("/dev/shm")
    return Look(
        installed_versions(),
        str(cache),
        error,
        free,
        shutil.disk_usage(shared).total if shared.is_dir() else None,
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        _size(Path(ray.get_runtime_context().worker.node.get_session_dir_path()).parent),
    )


def look_at_gpus() -> list[tuple[str, int, int]]:
    """Name, free and total bytes of every GPU that torch sees."""
    import torch

    count = torch.cuda.device_count()
    return [(torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)) for i in range(count)]


def why_not_shared(token: Path) -> str:
    """Why this node does not share the folder of a file that another has just written; or empty.

    Sharing is to see the file, and to be allowed to write beside it.
    """
    try:
        token.read_bytes()
    except FileNotFoundError:
        return "does not show what is written here"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if os.access(token.parent, os.W_OK) else "cannot be written"


def load_weights() -> bool:
    """Load the embedded models, or raise what is wrong with them."""
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
