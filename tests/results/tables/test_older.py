"""Studies that were written before a run recorded label, scheme and what its method is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsim.config.sections import PartitionConfig
from fedsim.methods import METHODS, method_class
from fedsim.methods.shown import CEILINGS, ZERO_SHOT
from fedsim.results.study import load
from fedsim.results.tables.equality import equal_results
from fedsim.results.tables.writer import TableWriter

NEW = ("partition_scheme", "pooled", "zero_shot")


def test_an_older_study_gives_the_same_summary(
    tmp_path: Path, make_study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    new = make_study(tmp_path / "new" / "demo", seeds=(0, 1))
    write = TableWriter.update_run

    def older(self: TableWriter, config: Any = None, **columns: Any) -> None:
        if "partition_scheme" in columns:
            columns["partition"] = columns["partition_scheme"]
        kept = {name: value for name, value in columns.items() if name not in NEW}
        write(self, config, **kept)

    monkeypatch.setattr(TableWriter, "update_run", older)
    old = make_study(tmp_path / "old" / "demo", seeds=(0, 1))
    raw = old.read("runs", ["partition", *NEW])
    assert set(raw["partition"]) == {"dirichlet", "iid"}
    assert raw[list(NEW)].isna().all(axis=None)
    assert set(old.runs["partition"]) == {"dirichlet 0.05", "dirichlet 0.5", "iid"}
    pd.testing.assert_frame_equal(old.summary(), new.summary())
    assert old.summary().attrs == new.summary().attrs
    assert equal_results(old, new) == []


@pytest.mark.parametrize(
    "config",
    [
        PartitionConfig(scheme="iid"),
        PartitionConfig(scheme="dirichlet_label", dirichlet_alpha=0.05),
        PartitionConfig(scheme="pathological", classes_per_client=2),
        PartitionConfig(scheme="quantity", size_sigma=1.5),
        PartitionConfig(scheme="quantity", dirichlet_alpha=0.3),
        PartitionConfig(scheme="domain", dirichlet_alpha=0.5),
        PartitionConfig(scheme="longtail", dirichlet_alpha=0.5, imbalance_factor=20),
    ],
    ids=lambda config: config.label,
)
def test_labels_are_those_of_the_configuration(tmp_path: Path, config: PartitionConfig):
    with TableWriter(tmp_path, "a") as writer:
        tree = {"partition": config.model_dump(mode="json")}
        alpha = getattr(config, "dirichlet_alpha", None)  # not every scheme has it
        writer.update_run(config=tree, partition=config.scheme, dirichlet_alpha=alpha)
    run = load(tmp_path).runs.iloc[0]
    assert (run.partition, run.partition_scheme) == (config.label, config.scheme)


def test_a_method_under_another_name_is_known_by_its_use(tmp_path: Path):
    for name, use in (("bound", "centralised_head"), ("floor", "zero_shot"), ("x", "./mine.py")):
        with TableWriter(tmp_path, name) as writer:
            writer.update_run(config={"use": use}, method=name)
    runs = load(tmp_path).runs.set_index("run_id")
    assert runs["pooled"].to_dict() == {"bound": True, "floor": False, "x": False}
    assert runs["zero_shot"].to_dict() == {"bound": False, "floor": True, "x": False}


def test_the_lists_say_what_the_methods_say():
    for name in METHODS:
        method = method_class(name)
        assert (name in CEILINGS, name in ZERO_SHOT) == (method.pooled, method.zero_shot), name
