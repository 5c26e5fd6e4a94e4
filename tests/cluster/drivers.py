"""A script in place of `nvidia-smi`, for machines that have none, or other GPUs."""

from pathlib import Path

QUERY = "--query-gpu=memory.total --format=csv,noheader,nounits"


def write_nvidia_smi(folder: Path, then: str) -> Path:
    """A folder for `$PATH`: its `nvidia-smi` notes that it was asked, then runs a shell command.

    Asked anything but `QUERY` it fails.
    """
    folder.mkdir(parents=True)
    script = folder / "nvidia-smi"
    script.write_text(
        f'#!/bin/sh\n[ "$*" = "{QUERY}" ] || exit 2\necho >> "{folder}/asked"\n{then}\n'
    )
    script.chmod(0o755)
    return folder


def times_asked(folder: Path) -> int:
    """How often the script in this folder was asked."""
    asked = folder / "asked"
    return len(asked.read_text().splitlines()) if asked.is_file() else 0
