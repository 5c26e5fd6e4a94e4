"""Which runs had the same data, so that the difference of their methods is a paired one.

Within a study, runs of one data set, partition and seed share their split, whatever the method.
Between studies this is checked: by the settings that decide the split, and by how many samples of
each class every client got.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from fedsim.config.sections import DataConfig, PartitionConfig
from fedsim.results.analysis.named_runs import CELL, final_runs, setting_text
from fedsim.results.tables.columns import CONFIG_PREFIX
from fedsim.results.tables.reader import Tables

_SOURCE = {"data.name", "data.path"}  # one data set may have several names and places
_SEED = "partition.seed"  # by default the run's own


def pair_keys(study: Tables) -> pd.Series:
    """The key that two runs of one data set and partition share if they are a pair.

    By run id: seed, settings of the split and a digest of the clients' label counts, as text;
    missing for a run without a seed.
    """
    runs = final_runs(study).set_index("run_id")
    counts, settings = _counts(study), _split_settings(runs)
    parts = zip(runs["seed"].map(str), *settings.values(), map(counts.get, runs.index), strict=True)
    keys = pd.Series([repr(part) for part in parts], index=runs.index, dtype=object)
    return keys.where(runs["seed"].notna())


def why_unpaired(study: Tables, dataset: str, partition: str, mine: str, other: str) -> str:
    """Why a method has no pairs with the reference in a cell, for a note."""
    runs = final_runs(study).set_index("run_id")
    cell = runs[(runs[CELL[0]] == dataset) & (runs[CELL[1]] == partition)]
    first, second = cell[cell["method"] == mine], cell[cell["method"] == other]
    if len(set(first["seed"]) & set(second["seed"])) < 2:
        return "too few seeds in common"
    differing = []
    for name, text in _split_settings(runs).items():
        a, b = (sorted(set(text[part.index])) for part in (first, second))
        if a != b and not (name == _SEED and set(a) & set(b)):
            differing.append(f"{name} is {', '.join(a)}, the reference's {', '.join(b)}")
    return "; ".join(differing[:3]) or "the clients hold other samples"


def _split_settings(runs: pd.DataFrame) -> dict[str, pd.Series]:
    """The settings of data and partition as texts, by name; defaults where a run has none."""
    found = {}
    for section, model in (("data", DataConfig), ("partition", PartitionConfig)):
        options: dict[str, object] = getattr(model, "known", dict)()  # of every partition scheme
        for leaf in model.model_fields | options:
            field = model.model_fields.get(leaf)
            name, default = f"{section}.{leaf}", setting_text(field and field.get_default())
            if (column := CONFIG_PREFIX + name) not in runs or name in _SOURCE:
                continue
            values = runs[column]
            text = values.map(setting_text).where(values.notna(), default)
            if name == _SEED:
                text = text.where(values.notna(), runs["seed"].map(str))
            found[name] = text
    return found


def _counts(study: Tables) -> dict[str, str]:
    """Run id -> a digest of how many samples of each class every client holds."""
    rows = study.clients
    rows = rows[(rows["round"] == 0) & rows["label_counts"].notna()]
    found = {}
    for run_id, own in rows.sort_values("client_id", kind="stable").groupby("run_id"):
        digest = hashlib.sha256()
        for counts in own["label_counts"]:
            array = np.asarray(counts, dtype=np.int64)
            digest.update(len(array).to_bytes(8, "little") + array.tobytes())
        found[str(run_id)] = digest.hexdigest()[:16]
    return found
