"""How much memory this machine's GPUs have, as their driver says. No CUDA, no torch, no Ray.

Ray hides the devices from tasks that hold no GPU, through `CUDA_VISIBLE_DEVICES`; `nvidia-smi` does
not look at it, and takes no memory on a device as a CUDA context would.
"""

from __future__ import annotations

import subprocess

_QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
_DEADLINE_S = 20.0  # a driver that nobody keeps loaded takes seconds


def smallest_gpu_bytes() -> int | None:
    """Memory in bytes of this machine's smallest GPU; None where no driver tells.

    Every physical GPU counts. Where `CUDA_VISIBLE_DEVICES` gives Ray a part of them only, the
    smallest of all is still no larger than the smallest of these: a plan that fits it is safe.
    Slices of a GPU (MIG) are smaller than the GPU that is told of here.
    """
    try:
        told = subprocess.run(
            _QUERY, capture_output=True, text=True, timeout=_DEADLINE_S, check=True
        ).stdout
        return min(int(mebibytes) for mebibytes in told.splitlines()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):  # ValueError: none, or "[N/A]"
        return None
