"""Drawing the images of a synthetic set in batches, each kept as soon as it is finished.

With a large generator this takes hours. A kill costs the batch in flight; the next process that
makes the set goes on from there. `Draw` hides where batches are drawn: in this process, or on
client actors, which hold GPUs and have nothing to train yet.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedsim.errors import ModelError
from fedsim.models.generator import Generator, load_generator
from fedsim.storage.array_cache import UnfinishedEntry

BATCH = 32
"""Images drawn at once. Part of a set's identity: neighbours change a picture by rounding."""


@dataclass(frozen=True)
class Recipe:
    """The generator: `models.generator`, `.generator_steps` and `.generator_guidance`."""

    generator: str
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Job:
    """One batch. Its pixels depend on this and the recipe alone."""

    number: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


Draw = Callable[[Recipe, Sequence[Job]], Iterator[tuple[int, np.ndarray]]]
"""Draws jobs; yields the number and uint8 `(n, H, W, 3)` of each, in any order."""


class Drawer:
    """Draws jobs in this process; the generator is loaded for the first one.

    Args:
        device: Where it draws.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._loaded: tuple[str, Generator] | None = None

    def __call__(self, recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, np.ndarray]]:
        """One job after the other; the generator's memory is free again afterwards."""
        try:
            for job in jobs:
                yield job.number, self.draw(recipe, job)
        finally:
            self.release()

    def draw(self, recipe: Recipe, job: Job) -> np.ndarray:
        """One job: uint8 `(n, H, W, 3)`. A job that does not fit in memory is drawn in halves.

        Raises:
            ModelError: The generator cannot be loaded, or one image alone needs too much memory.
        """
        if self._loaded is None or self._loaded[0] != recipe.generator:
            self.release()
            self._loaded = recipe.generator, load_generator(recipe.generator, self._device)
        try:
            generator = self._loaded[1].at(recipe.steps, recipe.guidance)
            return generator.generate(job.prompts, job.seeds, len(job.prompts))
        except torch.OutOfMemoryError as error:
            if len(job.prompts) == 1:
                raise ModelError(
                    f"generator {recipe.generator!r} runs out of memory with a single image on "
                    f"{self._device}: give it a larger share (resources.gpus_per_client)"
                ) from error
        torch.cuda.empty_cache()
        half = len(job.prompts) // 2
        halves = (slice(half), slice(half, None))
        parts = [Job(job.number, job.prompts[h], job.seeds[h]) for h in halves]
        return np.concatenate([self.draw(recipe, part) for part in parts])

    def release(self) -> None:
        """Give the generator's memory back."""
        if self._loaded is not None:
            self._loaded = None
            gc.collect()  # reference cycles keep pipelines alive
            torch.cuda.empty_cache()


class DrawnImages:
    """The images of a list of prompts: those stored already, and the others drawn now.

    Args:
        key: Of the entry that they are for, beside which finished batches are kept.
        recipe: The generator.
        prompts: One per image.
        seeds: One per image.
        draw: Where the missing batches are drawn.
    """

    def __init__(
        self,
        key: Mapping[str, Any],
        recipe: Recipe,
        prompts: Sequence[str],
        seeds: Sequence[int],
        draw: Draw,
    ) -> None:
        self._batches: dict[int, np.ndarray] = {}
        missing, unfinished = list[Job](), UnfinishedEntry(key)
        for number, start in enumerate(range(0, len(prompts), BATCH)):
            rows = slice(start, start + BATCH)
            job = Job(number, tuple(prompts[rows]), tuple(seeds[rows]))
            stored = unfinished.read(number)
            if stored is None or len(stored) != len(job.prompts):
                missing.append(job)
            else:
                self._batches[number] = stored
        for number, images in draw(recipe, missing) if missing else ():
            self._batches[number] = unfinished.kept(number, images)  # mapped, not in memory

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        """The images at `rows`."""
        return [Image.fromarray(self._pixels(row)) for row in rows]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """The same images as an array: uint8 (n, height, width, 3)."""
        return np.stack([self._pixels(row) for row in rows])

    def _pixels(self, row: int) -> np.ndarray:
        return self._batches[row // BATCH][row % BATCH]
