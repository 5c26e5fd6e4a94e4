"""This process: its threads and kernels, its heap, its peak memory, and the machine it runs on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

_PROCESS = Path("/proc/self")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES = 2**30


def settle_process(threads: int) -> None:
    """Prepare a process that computes; called before anything else.

    It fixes the threads and the choice of kernels, which could change the bits of a result, and
    keeps freed memory.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # Attention's inference-only kernel has neither a gradient nor a batching rule.
    torch.backends.mha.set_fastpath_enabled(False)


def keep_freed_memory() -> bool:
    """Hold up to 1 GiB of freed memory for the next request, from now on in this process.

    glibc gives freed blocks of more than a few MiB back to the kernel at once. On CPUs torch frees
    and requests such blocks in every layer, and every new page costs a fault. That takes a quarter
    of the time of small networks' training, and half of their evaluation (`benchmarks/heap.py`).
    The variables `MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` switch this off.

    Returns:
        Whether memory is kept; false with another C library than glibc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = (_TRIM_THRESHOLD, _MMAP_THRESHOLD)
    return all(mallopt(setting, _KEPT_BYTES) == 1 for setting in settings)


def give_freed_memory_back() -> None:
    """Return free memory to the kernel once, after reading data, which takes more than training.

    Does nothing with another C library than glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Measure the peak from now on; on CPUs only Linux can do so.

    On a CPU the peak is that of the whole process: libraries, data mapped into memory, and freed
    blocks that are kept for the next request. It is an upper bound of what clients need.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # another system, or a container that forbids it
        (_PROCESS / "clear_refs").write_text("5")  # proc_pid_clear_refs(5): resets VmHWM alone


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Columns of the table `clients`: the peak since `reset_peak_memory`, in bytes.

    Returns:
        `peak_memory_bytes` of a GPU, `peak_resident_bytes` of a CPU.
    """
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)}
    return {"peak_resident_bytes": peak_resident_bytes()}


def peak_resident_bytes() -> int | None:
    """Largest resident size of this process since the last reset, or since its start.

    Returns:
        Bytes; None if the system does not tell.
    """
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.M):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def describe_machine() -> dict[str, Any]:
    """Columns of `runs` about this host; nothing that identifies a person or a path."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "fedsim_version": version("fedsim"),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "node": platform.node(),
        "cpu_name": _cpu_name(),
        "gpu_name": gpu,
        "num_cpus": os.cpu_count(),
        "num_gpus": torch.cuda.device_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
