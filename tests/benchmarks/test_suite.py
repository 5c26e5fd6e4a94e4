"""The timed suite runs: each of its cases once, and no clock is looked at."""

import subprocess
import sys

from tests.conftest import ROOT


def test_every_case_of_make_bench_runs():
    command = [sys.executable, "-m", "pytest", "benchmarks/suite", "-o", "addopts=", "-q"]
    done = subprocess.run(
        [*command, "--benchmark-disable"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
