"""What a machine says of its GPUs' memory; on a cluster: test_gpu_fractions.py."""

import os
from pathlib import Path

import pytest

from fedsim.cluster import gpu_memory
from fedsim.cluster.gpu_memory import smallest_gpu_bytes
from tests.cluster.drivers import times_asked, write_nvidia_smi

MIB = 2**20


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ("echo 81559", 81559 * MIB),
        ("printf '81559\\n24564\\n81559\\n'", 24564 * MIB),
        ("echo NVIDIA-SMI has failed; exit 9", None),
        ("echo '[N/A]'", None),  # memory that the CPU shares
        ("true", None),  # a driver without a GPU
        ("exec sleep 600", None),
    ],
    ids=["one", "the smallest", "no driver", "no number", "no GPU", "no answer"],
)
def test_the_smallest_gpu_counts_and_what_is_not_told_is_unknown(
    then: str, told: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_nvidia_smi(tmp_path / "bin", then)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    if "sleep" in then:
        monkeypatch.setattr(gpu_memory, "_DEADLINE_S", 1.0)
    assert smallest_gpu_bytes() == told
    assert times_asked(folder) == 1


def test_a_machine_without_the_command_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert smallest_gpu_bytes() is None
