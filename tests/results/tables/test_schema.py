import pyarrow as pa
import pytest

from fedsim.errors import ResultsError
from fedsim.results.tables.columns import flatten_config
from fedsim.results.tables.schema import TABLES, arrow_schema, table_named
from tests.conftest import ROOT

# What the rest of the package, notebooks and papers rely on.
PROMISED = {
    "runs": "run_id study method dataset partition dirichlet_alpha num_clients seed status phase "
    "cache_init num_rounds partition_total_variation partition_effective_classes "
    "partition_size_gini error started_at finished_at bit_comparable fedsim_version synthetic_set",
    "rounds": "run_id round accuracy loss bytes_up bytes_down train_s aggregate_s distill_s eval_s "
    "num_clients_ok num_clients_failed",
    "evaluations": "run_id round model scope client_id split metric value class_name",
    "clients": "run_id round client_id num_samples label_counts status loss_before loss_after "
    "accuracy_before accuracy_after update_norm bytes_up bytes_down train_flops train_s "
    "peak_memory_bytes peak_resident_bytes node device",
    "synthetic": "run_id round class_name num_images",
    "events": "run_id time round client_id kind message",
    "predictions": "run_id round split sample label prediction correct",
}


@pytest.mark.parametrize("table", PROMISED)
def test_promised_columns_exist(table: str):
    assert set(PROMISED[table].split()) <= set(TABLES[table].names())


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_columns_are_documented_and_typed(table):
    names = table.names()
    assert len(set(names)) == len(names)
    assert isinstance(arrow_schema(table.name), pa.Schema)
    for column in table.columns:
        assert column.doc
        assert column.kind in ("key", "result", "measured")
        if column.name.endswith("_bytes") or column.name.startswith("bytes_"):
            assert column.unit == "bytes"
        if column.name.endswith("_s"):
            assert (column.unit, column.type) == ("s", "float64")


def test_time_and_machine_are_never_results():
    for table in TABLES.values():
        for column in table.columns:
            if column.name in ("train_s", "round_s", "node", "device", "time") or (
                column.name.startswith("peak_")
            ):
                assert column.kind == "measured", column


def test_the_reference_page_names_every_column():
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    for table in TABLES.values():
        section = page.split(f"## {table.name}\n")[1].split("\n## ")[0]
        for column in table.columns:
            assert f"| `{column.name}` | {column.type} |" in section


def test_unknown_names_get_a_hint():
    with pytest.raises(ResultsError, match="did you mean 'rounds'"):
        table_named("round_s")
    with pytest.raises(ResultsError, match="did you mean 'accuracy'"):
        TABLES["rounds"].column("acuracy")
    with pytest.raises(ResultsError, match="no column 'config.x'"):
        TABLES["rounds"].column("config.x")


def test_flatten_config_keeps_order_and_empty_sections():
    flat = flatten_config({"a": {"b": {"c": None}, "d": {}}, "e": [1, {"f": 2}], "g": "x"})
    assert flat == {
        "config.a.b.c": "null",
        "config.a.d": "{}",
        "config.e": '[1, {"f": 2}]',
        "config.g": '"x"',
    }
