"""Memory of this machine's GPUs, from their driver. No CUDA, no torch, no Ray.

Ray hides devices from tasks without a GPU through `CUDA_VISIBLE_DEVICES`. `nvidia-smi` ignores that
variable, and unlike a CUDA context it takes no memory on a device.
"""

from __future__ import annotations

import subprocess

_QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
_DEADLINE_S = 20.0  # loading the driver takes seconds


def smallest_gpu_bytes() -> int | None:
    """Memory in bytes of this machine's smallest GPU; None if no driver answers.

    Every physical GPU counts. If `CUDA_VISIBLE_DEVICES` gives Ray only some of them, a plan for the
    smallest of all is still safe. Slices of a GPU (MIG) are smaller than the GPU itself.
    """
    try:
        told = subprocess.run(
            _QUERY, capture_output=True, text=True, timeout=_DEADLINE_S, check=True
        ).stdout
        return min(int(mebibytes) for mebibytes in told.splitlines()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):  # ValueError: none, or "[N/A]"
        return None
