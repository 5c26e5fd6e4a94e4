from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Writes arrays to `data.npz` and returns its path."""

    def write(**arrays: object) -> str:
        np.savez(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes image folders: relative folder -> number of images (6x6, all different)."""

    def make(counts: dict[str, int], size: tuple[int, int] = (6, 6)) -> Path:
        root, value = tmp_path / "images", 0
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for index in range(count):
                value += 1
                pixels = np.full((size[1], size[0], 3), value % 256, dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{index:03}.png")
        return root

    return make
