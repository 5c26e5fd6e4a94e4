"""What a run ran on: versions and hardware, for the `runs` table."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch


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
