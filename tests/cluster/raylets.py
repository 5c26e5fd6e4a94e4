"""Scripts that start raylets of their own, and what they saw."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def seen_by(script: str, folder: Path) -> dict[str, Any]:
    """What the script prints; in a process of its own, since Ray connects a process only once."""
    command = [sys.executable, "-m", f"tests.cluster.{script}", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1])
