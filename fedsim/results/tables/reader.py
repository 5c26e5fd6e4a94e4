"""Reading a study: its tables as pandas data frames, also while it runs and after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.errors import ResultsError, did_you_mean
from fedsim.results.tables.columns import CONFIG_PREFIX
from fedsim.results.tables.equality import equal_results
from fedsim.results.tables.schema import TABLES
from fedsim.storage.remote import Copy, local_folder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

__all__ = ["NearestReal", "Study", "SyntheticImages", "equal_results", "load"]


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
        closest: int64 (P,), the synthetic images with the largest cosines, largest first; None
            where the data holds features instead of images.
        pixels: uint8 (P, H, H, 3), the middle of the training image nearest to each of `closest`,
            at most 128 pixels high; None like these.
    """

    rows: np.ndarray
    similarity: np.ndarray
    closest: np.ndarray | None = None
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Study:
    """The tables of one study, each read when first asked for, then kept.

    `load` the study again to see what was written since.

    Attributes:
        path: Folder of the study.
        derived: What `fedsim.results.analysis.named_runs` computed of the tables, so that it does
        so once.
    """

    path: Path
    derived: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Name of the study: that of its folder."""
        return self.path.resolve().name

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run; `config.*` columns hold decoded values."""
        frame = self._read("runs")
        for name in frame.columns:
            if name.startswith(CONFIG_PREFIX):
                frame[name] = _decoded(frame[name])
        return frame

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per run and round."""
        return self._read("rounds")

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row per number: a metric of a model on a split, in a scope."""
        return self._read("evaluations")

    @cached_property
    def clients(self) -> pd.DataFrame:
        """Round 0: every client and its data. Later rounds: the clients of the cohort."""
        return self._read("clients")

    @cached_property
    def synthetic(self) -> pd.DataFrame:
        """One row per class of a synthetic set, whenever one was made."""
        return self._read("synthetic")

    @cached_property
    def events(self) -> pd.DataFrame:
        """One row per thing worth telling: failures, retries, back-offs, resumptions."""
        return self._read("events")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per sample of the last round: what the model said."""
        return self._read("predictions")

    def summary(self, reference_method: str | None = None, **options: Any) -> pd.DataFrame:
        """One row per method and partition: see `fedsim.results.analysis.summary.summarise`."""
        from fedsim.results.analysis.summary import summarise

        return summarise(self, reference_method, **options)

    def synthetic_sets(self) -> list[str]:
        """Fingerprints of the synthetic sets that are kept with the study."""
        return sorted(path.stem for path in (self.path / "images").glob("[!.]*.npz"))

    def synthetic_rounds(self, run_id: str | None = None) -> dict[str, list[int]]:
        """Rounds whose images are kept, by run: what the server made while it ran."""
        folders = sorted((self.path / "images").glob("[!.]*/"))
        return {
            folder.name: sorted(int(path.stem) for path in folder.glob("[!.]*.npz"))
            for folder in folders
            if run_id in (None, folder.name)
        }

    def synthetic_images(
        self, which: str | int | None = None, run_id: str | None = None
    ) -> SyntheticImages:
        """The images of a synthetic set.

        Args:
            which: A fingerprint (`runs.synthetic_set`), or a round of a method that makes images
                in every round; needed when there is more than one set.
            run_id: Of a round: which run's; needed when several have images of it.

        Raises:
            ResultsError: There is no such set, or it does not say which.
        """
        if isinstance(which, int):
            return _read_images(self._round_images(which, run_id))
        known = self.synthetic_sets()
        if which is None:
            if len(known) != 1:
                found = "no synthetic images" if not known else f"several: {', '.join(known)}"
                raise ResultsError(f"study {self.name} has {found}; see the column synthetic_set")
            which = known[0]
        if which not in known:
            hint = did_you_mean(which, known) if known else "it has none"
            raise ResultsError(f"study {self.name} has no synthetic set {which!r}; {hint}")
        return _read_images(self.path / "images" / f"{which}.npz")

    def nearest_real(self, run_id: str | None = None) -> NearestReal:
        """Which training images a run's synthetic images are nearest to.

        Args:
            run_id: The run; needed when sets or training data of the study's runs differ.

        Raises:
            ResultsError: Nothing is kept of the run, or it does not say which.
        """
        import numpy as np

        runs = self.runs if run_id is None else self.runs[self.runs["run_id"] == run_id]
        known = runs.dropna(subset=["synthetic_set", "inputs"])
        names = sorted({f"{run.synthetic_set}-{run.inputs}.npz" for run in known.itertuples()})
        found = [path for name in names if (path := self.path / "nearest" / name).is_file()]
        of = f"study {self.name}" if run_id is None else f"run {run_id} of study {self.name}"
        if not found:
            raise ResultsError(
                f"{of} does not know the nearest training images of a synthetic set: it has no "
                f"set, or its clients do not train on features of the same encoder"
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

    def read(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """A few columns of a table as they are on disk now: quick, however wide the table is."""
        return _to_pandas(self._table(name, columns).select(list(columns)))

    def _read(self, name: str) -> pd.DataFrame:
        return _to_pandas(self._table(name))

    def _table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One of the tables, as it lies on disk."""
        from fedsim.results.tables.many_runs import read_table

        return read_table(self.path / name, name, columns)


def _read_images(path: Path) -> SyntheticImages:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["classnames"]]
        clients = file.get("clients")
        return SyntheticImages(file["images"], file["labels"], names, clients)


def load(path: Path | str) -> Study:
    """Open a study's folder.

    Args:
        path: The folder, usually `runs/<study>`, or its URL on object storage.

    Raises:
        ResultsError: There is no such folder, or it holds studies rather than being one, or its
            storage cannot be reached.
    """
    if "://" in (url := str(path)):
        path = local_folder(url, reading=True)
        Copy(path).pull()
        if not path.is_dir():
            raise ResultsError(f"there is nothing at {url}")
    path = Path(path)
    if not path.is_dir():
        siblings = _studies_in(path.parent)
        if siblings:
            hint = did_you_mean(path.name, siblings)
        else:
            hint = f"no study was found in {path.parent} either"
        raise ResultsError(f"there is no study {path}; {hint}")
    if not _is_study(path) and (inside := _studies_in(path)):
        raise ResultsError(
            f"{path} is a folder of studies, not a study; load one of them: "
            + ", ".join(str(path / name) for name in inside)
        )
    return Study(path)


def _is_study(path: Path) -> bool:
    return any((path / name).is_dir() for name in TABLES)


def _studies_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _is_study(path))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """Whole numbers and truth values stay what they are, also where some are missing."""
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    plain = {pd.Int64Dtype(): "int64", pd.BooleanDtype(): "bool"}
    complete = {
        name: plain[dtype]
        for name, dtype in frame.dtypes.items()
        if dtype in plain and not frame[name].isna().any()
    }
    return frame.astype(complete)


def _decoded(column: pd.Series) -> pd.Series:
    """A `config.*` column with its JSON texts turned into values."""
    import pandas as pd

    known = {text: json.loads(text) for text in column.dropna().unique()}
    for text, value in list(known.items()):
        if isinstance(value, list | dict):  # every row gets its own
            del known[text]
    texts = zip(column.tolist(), column.isna(), strict=True)
    values = [
        None if missing else known[text] if text in known else json.loads(text)
        for text, missing in texts
    ]
    return pd.Series(values, index=column.index, name=column.name)
