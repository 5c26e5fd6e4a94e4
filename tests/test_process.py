"""Freed memory stays with the process until it is told otherwise, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from fedsim.process import keep_freed_memory

assert keep_freed_memory() == (sys.argv[1] == "kept")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b"x" * 2**26  # 64 MiB, every page touched
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(expected: str, **environment: str) -> int:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, expected],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_blocks_come_back_without_page_faults():
    given_back = faults("left alone", MALLOC_TOP_PAD_="131072")  # the user's word counts
    kept = faults("kept")
    assert kept < 0.2 * given_back


GIVEN_BACK = """
import psutil
from fedsim.process import give_freed_memory_back, keep_freed_memory

keep_freed_memory()
resident = lambda: psutil.Process().memory_info().rss / 2**20
block, last = b"x" * 2**27, b"y" * 1000  # 128 MiB with something above it
del block
before = resident()
give_freed_memory_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_what_is_kept_can_be_given_back():
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", GIVEN_BACK]
    done = subprocess.run(command, env=inherited, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 100
