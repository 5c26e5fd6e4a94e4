"""Writing the tables of one run, round by round.

One writer per run. Rows are checked when appended, and reach the disk at `commit`, where each table
that changed has its open part rewritten and renamed (see `fedsim.results.tables.files`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedsim.errors import ResultsError
from fedsim.results.tables import files
from fedsim.results.tables.columns import CONFIG_PREFIX, flatten_config
from fedsim.results.tables.rows import Rows, cell_array, to_batch
from fedsim.results.tables.schema import TABLES, arrow_schema
from fedsim.storage.atomic import drafts_of, whole_file

SEAL_ROWS = 8192


class TableWriter(AbstractContextManager["TableWriter"]):
    """Appends the rows of one run to the tables of a study.

    Rows that the run wrote before are kept. A resumed run must call `truncate` with the round of
    its checkpoint before it appends. The writer reads them when it is first used, since another
    process may be writing them until the run is claimed.

    Args:
        study_dir: Folder of the study; made when first needed.
        run_id: The run; a file name of its own.
        seal_rows: An open part with this many rows is sealed and no longer rewritten.
        durable: Wait for the disk at each commit, not only at `close`. Without it, a power cut may
            lose rows on file systems that do not order renames; a killed process loses nothing.

    Raises:
        ResultsError: The run id cannot be a file name; when first used, a file cannot be read.
    """

    def __init__(
        self, study_dir: Path | str, run_id: str, seal_rows: int = SEAL_ROWS, durable: bool = False
    ) -> None:
        files.check_run_id(run_id)
        self.study_dir, self.run_id = Path(study_dir), run_id
        self._seal_rows, self._durable, self._closed = seal_rows, durable, False
        self._run: dict[str, Any] = {"run_id": run_id}
        self._run_changed, self._set_here = False, {"run_id"}
        self._cells: dict[str, tuple[Any, pa.Array]] = {}
        self._open: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
        self._changed: set[str] = set()
        self._sealed = dict.fromkeys(TABLES, 0)
        self._taken_up = self._must_truncate = False

    def append(self, table: str, rows: Rows) -> None:
        """Add rows, to be written at the next commit. `run_id` is filled in.

        Args:
            table: Any table but `runs`.
            rows: A list of rows, or, for many rows at once, a mapping of column names to arrays of
                equal length; single values in it are repeated.

        Raises:
            ResultsError: A column is unknown, or a value is missing or has the wrong type.
        """
        self._check_open()
        if table == "runs":
            raise ResultsError("the runs table has one row per run; call update_run")
        if self._must_truncate:
            raise ResultsError(
                f"run {self.run_id} already has rows in {self.study_dir}; before appending, call "
                "truncate(last_round) with the last round to keep, or -1 for none"
            )
        batch = to_batch(table, rows, self.run_id)
        if batch.num_rows:
            self._open[table].append(batch)
            self._changed.add(table)

    def update_run(self, config: Mapping[str, Any] | None = None, **columns: Any) -> None:
        """Set columns of the run's row in `runs`, to be written at the next commit.

        Args:
            config: The whole resolved configuration, nested; replaces the `config.*` columns.
            **columns: Other columns of the row.

        Raises:
            ResultsError: A column is unknown or a value has the wrong type.
        """
        self._check_open()
        for name, value in columns.items():
            cell_array("runs", TABLES["runs"].column(name), [value])
        if config is not None:
            self._run = {k: v for k, v in self._run.items() if not k.startswith(CONFIG_PREFIX)}
            columns |= flatten_config(config)
        self._run.update(columns, run_id=self.run_id)
        self._set_here |= set(columns)
        self._run_changed = True

    def save_images(
        self, fingerprint: str, images: np.ndarray, labels: np.ndarray, classnames: Sequence[str]
    ) -> None:
        """Keep a synthetic set in `images/<fingerprint>.npz`, unless it is there already.

        Args:
            fingerprint: Name of the set; `runs.synthetic_set` refers to it.
            images: uint8 (num_images, height, width, 3).
            labels: (num_images,)
            classnames: One name per class.

        Raises:
            ResultsError: The arrays have other shapes or types.
        """
        self._save_new(f"images/{fingerprint}", _image_set(images, labels, classnames))

    def save_nearest(self, fingerprint: str, inputs: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the nearest training images in `nearest/<fingerprint>-<inputs>.npz`, if new.

        Args:
            fingerprint: Name of the set.
            inputs: Name of the training data (`runs.inputs`).
            arrays: The fields of `fedsim.results.study.NearestReal`.
        """
        self._save_new(f"nearest/{fingerprint}-{inputs}", arrays)

    def save_round_images(
        self,
        round: int,
        images: np.ndarray,
        labels: np.ndarray,
        classnames: Sequence[str],
        clients: np.ndarray,
    ) -> None:
        """Keep the images that the server made in a round in `images/<run_id>/<round>.npz`.

        Arguments are those of `save_images`, and the client behind each image, (num_images,); -1
        stands for none. A resumed run replaces the images of rounds that it computes again.
        """
        arrays = _image_set(images, labels, classnames) | {"clients": clients}
        _write_npz(self.study_dir / "images" / self.run_id / f"{round:05}.npz", arrays)

    def commit(self) -> None:
        """Write every table that changed, the run's row last."""
        for name in [name for name in TABLES if name in self._changed]:
            self._write_open(name)
            if sum(batch.num_rows for batch in self._open[name]) >= self._seal_rows:
                folder = self._folder(name)
                self._sealed[name] += 1
                sealed = files.sealed_path(folder, self.run_id, self._sealed[name])
                os.replace(files.open_path(folder, self.run_id), sealed)
                self._open[name] = []
        self._changed.clear()
        if self._run_changed:
            row = {name: self._cell(name, value) for name, value in self._run.items()}
            path = files.open_path(self._folder("runs"), self.run_id)
            files.write(path, files.conform(pa.table(row), "runs"), 0, self._durable)
            self._run_changed = False

    def truncate(self, last_round: int) -> None:
        """Drop the rows of rounds after `last_round`, events included, on disk at once.

        Args:
            last_round: Last round to keep. -1 starts the run anew: of its row in `runs`, only the
                columns that this writer has set are kept.
        """
        self._check_open()
        for name in TABLES:
            if name == "runs":
                continue
            rows = self._all_rows(name)
            later = pc.fill_null(pc.greater(rows["round"], last_round), False)
            if pc.any(later).as_py():
                self._replace(name, rows.filter(pc.invert(later)), compact=False)
        if last_round < 0:
            files.remove([files.open_path(self._folder("runs"), self.run_id)])
            self._run = {name: self._run[name] for name in self._set_here if name in self._run}
        self._must_truncate = False

    def close(self) -> None:
        """Commit, and merge the parts of each table into one file. Closing twice does nothing."""
        if self._closed:
            return
        self.commit()
        for name in TABLES:
            if self._sealed[name]:
                self._replace(name, self._all_rows(name), compact=True)
        self._closed = True

    begin, end = truncate, close  # as a sink is called

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cell(self, name: str, value: Any) -> pa.Array:
        """A value of the run's row; of two hundred, few change from commit to commit."""
        before = self._cells.get(name)
        if before is None or before[0] is not value:
            before = value, cell_array("runs", TABLES["runs"].column(name), [value])
            self._cells[name] = before
        return before[1]

    def _open_existing(self) -> bool:
        """Read the run's files and clear away a killed writer's leavings; whether rows exist."""
        found = False
        for name in TABLES:
            folder = self.study_dir / name
            if not folder.is_dir():
                continue
            files.remove(drafts_of(folder, f"{self.run_id}.parquet"))
            files.remove(drafts_of(folder, f"{self.run_id}-[0-9][0-9][0-9][0-9].parquet"))
            has_open = files.open_path(folder, self.run_id).exists()
            if not has_open and not files.sealed_numbers(folder, self.run_id):
                continue
            existing = files.read_run(folder, self.run_id)
            assert existing is not None  # nobody else writes this run
            found = found or (name != "runs" and existing.table().num_rows > 0)
            self._sealed[name] = len(existing.sealed)
            stale = files.sealed_numbers(folder, self.run_id)[self._sealed[name] :]
            files.remove(files.sealed_path(folder, self.run_id, number) for number in stale)
            if name == "runs":
                row = existing.table().to_pylist()[0]
                self._run |= {key: value for key, value in row.items() if value is not None}
            elif existing.opened is not None:
                self._open[name] = files.conform(existing.opened, name).to_batches()
        return found

    def _write_open(self, name: str) -> None:
        table = pa.Table.from_batches(self._open[name], arrow_schema(name)).combine_chunks()
        path = files.open_path(self._folder(name), self.run_id)
        files.write(path, table, self._sealed[name], self._durable)
        self._open[name] = table.to_batches()

    def _all_rows(self, name: str) -> pa.Table:
        """Sealed, open and not yet written rows of a table."""
        rows = pa.Table.from_batches(self._open[name], arrow_schema(name))
        existing = files.read_run(self._folder(name), self.run_id) if self._sealed[name] else None
        sealed = existing.sealed if existing else []
        return pa.concat_tables([*(files.conform(part, name) for part in sealed), rows])

    def _replace(self, name: str, rows: pa.Table, compact: bool) -> None:
        """Put all rows of a table into the open part; the sealed parts go."""
        folder = self._folder(name)
        files.write(files.open_path(folder, self.run_id), rows, 0, True, compact)
        numbers = files.sealed_numbers(folder, self.run_id)
        files.remove(files.sealed_path(folder, self.run_id, number) for number in numbers)
        self._sealed[name], self._open[name] = 0, rows.to_batches()
        self._changed.discard(name)

    def _folder(self, name: str) -> Path:
        folder = self.study_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _save_new(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        path = self.study_dir / f"{name}.npz"
        if not path.exists():
            _write_npz(path, arrays)

    def _check_open(self) -> None:
        if self._closed:
            raise ResultsError(f"the writer of run {self.run_id} is closed")
        if not self._taken_up:
            self._taken_up, self._must_truncate = True, self._open_existing()


def _image_set(
    images: np.ndarray, labels: np.ndarray, classnames: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of a set's file, checked."""
    images, labels = np.asarray(images), np.asarray(labels, dtype=np.int64)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ResultsError(
            f"synthetic images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ResultsError(f"{len(images)} synthetic images with labels of shape {labels.shape}")
    return {"images": images, "labels": labels, "classnames": np.array(classnames, dtype=str)}


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez(file, **dict[str, Any](arrays))
