"""A study: its tables, its synthetic images, its summary; and how a study's folder is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedsim.errors import ResultsError, did_you_mean
from fedsim.results.tables.reader import Tables, holds_tables
from fedsim.storage.remote import Copy, local_folder


class SyntheticImages(NamedTuple):
    """A synthetic set: uint8 images (N, H, W, 3), labels (N,), one name per class.

    Sets of a round also say which client is behind each image, (N,); -1 for none.
    """

    images: np.ndarray
    labels: np.ndarray
    classnames: list[str]
    clients: np.ndarray | None = None


class NearestReal(NamedTuple):
    """For each image of a synthetic set, the training image nearest to it in feature space.

    Attributes:
        rows: int64 (N,), rows of the training split.
        similarity: float64 (N,), cosines of the two images' features.
        closest: int64 (P,), the synthetic images with the largest cosines, largest first. None if
            the data holds features instead of images.
        pixels: uint8 (P, H, H, 3), the middle of the training image nearest to each of `closest`,
            at most 128 pixels high. None if `closest` is.
    """

    rows: np.ndarray
    similarity: np.ndarray
    closest: np.ndarray | None = None
    pixels: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Study(Tables):
    """The tables of one study and the images beside them.

    `load` the study again to see what was written since.
    """

    def summary(self, reference_method: str | None = None, **options: Any) -> pd.DataFrame:
        """One row per method and partition: see `fedsim.results.analysis.summary.summarise`."""
        from fedsim.results.analysis.summary import summarise  # SciPy: a second that `load` saves

        return summarise(self, reference_method, **options)

    def synthetic_sets(self) -> list[str]:
        """Fingerprints of the synthetic sets that are kept with the study."""
        return sorted(path.stem for path in (self.path / "images").glob("[!.]*.npz"))

    def synthetic_rounds(self, run_id: str | None = None) -> dict[str, list[int]]:
        """Rounds whose images are kept, by run: the images that the server made in them."""
        return {
            folder.name: sorted(int(path.stem) for path in folder.glob("[!.]*.npz"))
            for folder in sorted((self.path / "images").glob("[!.]*/"))
            if run_id in (None, folder.name)
        }

    def synthetic_images(
        self, which: str | int | None = None, run_id: str | None = None
    ) -> SyntheticImages:
        """The images of a synthetic set.

        Args:
            which: A fingerprint (`runs.synthetic_set`), or a round of a method that makes images
                in every round; may be left out if there is one set only.
            run_id: The run, if several have images of the round.

        Raises:
            ResultsError: There is no such set, or there are several.
        """
        if isinstance(which, int):
            return _read_images(self._round_images(which, run_id))
        known = self.synthetic_sets()
        if which is None and len(known) != 1:
            found = "no synthetic images" if not known else f"several: {', '.join(known)}"
            raise ResultsError(f"study {self.name} has {found}; see the column synthetic_set")
        which = known[0] if which is None else which
        if which not in known:
            hint = did_you_mean(which, known) if known else "it has none"
            raise ResultsError(f"study {self.name} has no synthetic set {which!r}; {hint}")
        return _read_images(self.path / "images" / f"{which}.npz")

    def nearest_real(self, run_id: str | None = None) -> NearestReal:
        """Which training images a run's synthetic images are nearest to.

        Args:
            run_id: The run, if the study has several sets or training data.

        Raises:
            ResultsError: Nothing is kept of the run, or there are several sets or data.
        """
        runs = self.runs if run_id is None else self.runs[self.runs["run_id"] == run_id]
        known = runs.dropna(subset=["synthetic_set", "inputs"])
        names = sorted({f"{run.synthetic_set}-{run.inputs}.npz" for run in known.itertuples()})
        found = [path for name in names if (path := self.path / "nearest" / name).is_file()]
        of = f"study {self.name}" if run_id is None else f"run {run_id} of study {self.name}"
        if not found:
            raise ResultsError(
                f"{of} does not know the nearest training images of a synthetic set: it has no "
                "set, or its clients do not train on features of the same encoder"
            )
        if len(found) > 1:
            raise ResultsError(f"{of} has {len(found)} sets or training data: give run_id")
        with np.load(found[0], allow_pickle=False) as file:
            return NearestReal(**file)

    def _round_images(self, round: int, run_id: str | None) -> Path:
        """The file of one run's images of a round."""
        kept = self.synthetic_rounds(run_id)
        runs = [run for run, rounds in kept.items() if round in rounds]
        if not runs:
            there = "; ".join(f"{run} has rounds {rounds}" for run, rounds in kept.items())
            of = "" if run_id is None else f" of run {run_id}"
            raise ResultsError(
                f"study {self.name} has no images of round {round}{of}; {there or 'it has none'}"
            )
        if len(runs) > 1:
            raise ResultsError(
                f"several runs of study {self.name} have images of round {round}: give run_id, one "
                f"of {', '.join(runs)}"
            )
        return self.path / "images" / runs[0] / f"{round:05}.npz"


def _read_images(path: Path) -> SyntheticImages:
    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["classnames"]]
        clients = file.get("clients")
        return SyntheticImages(file["images"], file["labels"], names, clients)


def load(path: Path | str) -> Study:
    """Open a study's folder.

    Args:
        path: The folder, usually `runs/<study>`, or its URL on object storage.

    Raises:
        ResultsError: There is no such folder, its storage cannot be reached, or it holds studies.
    """
    if "://" in (url := str(path)):
        path = local_folder(url, reading=True)
        Copy(path).pull()
        if not path.is_dir():
            raise ResultsError(f"there is nothing at {url}")
    path = Path(path)
    if not path.is_dir():
        hint = f"no study was found in {path.parent} either"
        if siblings := _studies_in(path.parent):
            hint = did_you_mean(path.name, siblings)
        raise ResultsError(f"there is no study {path}; {hint}")
    if not holds_tables(path) and (inside := _studies_in(path)):
        raise ResultsError(
            f"{path} is a folder of studies, not a study; load one of them: "
            + ", ".join(str(path / name) for name in inside)
        )
    return Study(path)


def _studies_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/") if holds_tables(path))
