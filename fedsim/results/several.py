"""Several studies read as one, to compare methods that were run on different days or machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fedsim.errors import ResultsError
from fedsim.results.study import Study, load


@dataclass(frozen=True, eq=False)
class Studies(Study):
    """The tables of several studies, one below the other, for everything that takes a study.

    `runs.study` holds the name of the study, and every run id begins with it. Images stay with
    their own studies.

    Attributes:
        members: The studies by the name of their folder, with folders above it if two share one.
    """

    members: dict[str, Study] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The names of all of them."""
        return " and ".join(self.members)

    def synthetic_sets(self) -> list[str]:
        """None: the study that made a set has it."""
        return []

    def _table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        found = []
        for label, study in self.members.items():
            table = study._table(name, columns and [*columns, "run_id", "study"])
            run_ids = pc.binary_join_element_wise(pa.scalar(label), table["run_id"], "/")
            table = table.set_column(table.schema.get_field_index("run_id"), "run_id", run_ids)
            if name == "runs":
                place = table.schema.get_field_index("study")
                labels = pa.array([label] * table.num_rows, pa.string())
                table = table.set_column(place, "study", labels)
            found.append(table)
        return pa.concat_tables(found, promote_options="default")


def load_several(paths: Sequence[Path | str]) -> Studies:
    """Open the folders of several studies as one; the first one's settings decide the reference.

    Raises:
        ResultsError: A folder holds no study, or is given twice.
    """
    folders = [Path(path) for path in paths]
    places = Counter(folder.resolve() for folder in folders)
    if again := [str(folder) for folder in folders if places[folder.resolve()] > 1]:
        raise ResultsError(f"{again[0]} is given twice; a study is compared with others")
    labels = _labels([folder.resolve() for folder in folders])
    members = dict(zip(labels, map(load, folders), strict=True))
    return Studies(folders[0], members=members)


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        labels = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(labels)) == len(labels):
            break
    return labels
