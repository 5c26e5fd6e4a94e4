"""The peak of a process: it is what was touched, and can be measured anew."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

from fedsim import process
from fedsim.process import peak_memory, peak_resident_bytes, reset_peak_memory

CPU = torch.device("cpu")


def resets() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return "VmHWM" in Path("/proc/self/status").read_text()


@pytest.mark.skipif(not resets(), reason="this system cannot reset a process's peak")
def test_the_peak_is_of_the_time_since_the_reset():
    size = 200 * 2**20
    reset_peak_memory(CPU)
    before = peak_resident_bytes()
    assert before is not None
    with mmap.mmap(-1, size) as block:  # goes back to the system when closed
        block.write(b"x" * size)
    high = peak_memory(CPU)["peak_resident_bytes"]
    assert high is not None
    assert high > before + 0.9 * size
    reset_peak_memory(CPU)
    after = peak_resident_bytes()
    assert after is not None
    assert after < high - 0.9 * size


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_elsewhere_the_peak_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "_PROCESS", tmp_path / "none")
    reset_peak_memory(CPU)
    found = peak_resident_bytes()
    assert found is not None
    assert found > 50 * 2**20  # torch alone
