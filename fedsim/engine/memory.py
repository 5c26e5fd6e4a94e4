"""The most memory that training took: of a GPU what torch allocated, of a CPU the whole process.

A process's peak holds all that is resident: libraries, data mapped into memory, and freed blocks
that are kept for the next request (`fedsim.engine.heap`). It bounds what clients need from above.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import torch

__all__ = ["peak_memory", "peak_resident_bytes", "reset_peak_memory"]

_PROCESS = Path("/proc/self")


def reset_peak_memory(device: torch.device) -> None:
    """Measure from now on; of a CPU where the system can (Linux), else nothing changes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # another system, or a container that forbids it
        (_PROCESS / "clear_refs").write_text("5")  # proc_pid_clear_refs(5): resets VmHWM alone


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """What the table `clients` says of the time since `reset_peak_memory`, in bytes.

    Returns:
        `peak_memory_bytes` of a GPU, `peak_resident_bytes` of a CPU.
    """
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)}
    return {"peak_resident_bytes": peak_resident_bytes()}


def peak_resident_bytes() -> int | None:
    """Largest resident size of this process since it was reset; if it never was, of its life.

    Returns:
        Bytes; None where the system does not tell.
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
