"""Studies that an earlier version of fedsim wrote: their tables get the columns of today.

Earlier versions did not record these facts in the row of a run:

- `partition_scheme`: the column `partition` held the bare scheme, `dirichlet_label`; now it holds
  the label, `dirichlet_label 0.05`, and the scheme has the new column;
- `pooled` and `zero_shot`: they follow from the name of the method.
"""

from __future__ import annotations

import pandas as pd

from fedsim.methods.shown import CEILINGS, ZERO_SHOT
from fedsim.results.tables.columns import CONFIG_PREFIX

_NUMBERS = {"pathological": "classes_per_client", "quantity": "size_sigma"}  # the others: alpha


def with_new_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """The table `runs`, with decoded settings, and these columns where a run lacked them."""
    older = runs["partition_scheme"].isna() & runs["partition"].notna()
    if older.any():
        scheme = runs["partition"].where(older)
        runs["partition_scheme"] = runs["partition_scheme"].where(~older, scheme)
        runs["partition"] = runs["partition"].where(~older, _labels(runs, scheme))
    use = runs.get(CONFIG_PREFIX + "use", runs["method"])
    for name, known in (("pooled", CEILINGS), ("zero_shot", ZERO_SHOT)):
        derived = runs["method"].isin(known) | use.isin(known)
        runs[name] = runs[name].where(runs[name].notna(), derived).astype(bool)
    return runs


def _labels(runs: pd.DataFrame, scheme: pd.Series) -> pd.Series:
    """Scheme and the number that it is known by, as `PartitionConfig.label` writes them."""
    numbers = runs["dirichlet_alpha"].astype("float64")
    for of, leaf in _NUMBERS.items():
        if (column := f"{CONFIG_PREFIX}partition.{leaf}") in runs:
            own = pd.to_numeric(runs[column], errors="coerce").astype("float64")
            numbers = own.where(scheme.eq(of) & own.notna(), numbers)
    return scheme.where(numbers.isna(), scheme + " " + numbers.map("{:g}".format))
