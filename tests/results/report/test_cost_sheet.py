from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import ConfigError, ResultsError
from fedsim.results.report.cost_sheet import (
    Prices,
    cost_grids,
    cost_sheet,
    format_costs,
    read_prices,
)
from fedsim.results.study import Study, load
from fedsim.results.tables.writer import TableWriter

ROUND = {"aggregate_s": 1.0, "distill_s": 2.0, "train_s": 99.0, "eval_s": 50.0}


def write(folder: Path, run_id: str, device: str = "cpu", seed: int = 0, **config: object) -> None:
    """Two rounds of two of four clients that take 1 s each, and 3 s of the server."""
    with TableWriter(folder, run_id) as writer:
        writer.update_run(
            config={"resources": config} if config else {"engine": {"threads": 1}},
            study="s", method=run_id.partition("-")[0], dataset="d", partition="iid", seed=seed,
            num_clients=4, status="finished", device=device,
        )  # fmt: skip
        writer.append("rounds", [{"round": 0, "bytes_up": 0, "bytes_down": 0, "eval_s": 50.0}])
        for r in (1, 2):
            row = {"round": r, "accuracy": 0.5, "train_flops": 600, "num_clients_ok": 2}
            row |= {"bytes_up": 100 * (1 + seed), "bytes_down": 300}
            writer.append("rounds", [row | ROUND])
            where = "cuda:0" if device == "cuda" else "cpu"
            peak = "peak_memory_bytes" if device == "cuda" else "peak_resident_bytes"
            clients = [
                {"round": r, "client_id": c, "status": "ok", "train_s": 1.0, "device": where,
                 peak: 1000 * r + seed}
                for c in (0, 1)
            ]  # fmt: skip
            writer.append("clients", clients)


def row_of(folder: Path, prices: Prices | None = None) -> dict:
    (row,) = cost_sheet(load(folder), prices).to_dict("records")
    return row


def test_a_row_by_hand(tmp_path: Path):
    write(tmp_path, "fedavg-a", seed=0)
    write(tmp_path, "fedavg-b", seed=1)
    row = row_of(tmp_path)
    assert (row["num_runs"], row["num_clients"], row["rounds"]) == (2, 4, 2)
    assert (row["bytes_up"], row["bytes_down"]) == ((200 + 400) / 2, 600)
    assert (row["bytes_up_per_client"], row["bytes_down_per_client"]) == (75, 150)
    assert (row["client_flops"], row["client_flops_per_round"]) == (1200, 300)
    assert (row["client_s"], row["server_s"]) == (4, 6)
    assert row["cpu_hours"] == pytest.approx(10 / 3600)
    assert row["gpu_hours"] == 0
    assert np.isnan(row["peak_memory_bytes"])
    assert row["peak_resident_bytes"] == 2001
    assert "price" not in row


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        ({"gpus_per_client": 0.25}, 0.25),
        ({"gpus_per_client": 2}, 2),
        ({"gpus_per_client": "auto"}, 1),
    ],
)
def test_a_gpu_counts_by_the_share_a_client_holds(tmp_path: Path, asked: dict, share: float):
    write(tmp_path, "fedavg-a", device="cuda", **asked)
    write(tmp_path, "fedavg-b", device="cuda", seed=5, **asked)
    row = row_of(tmp_path)
    assert row["gpu_hours"] == pytest.approx((4 * share + 6) / 3600)
    assert row["cpu_hours"] == 0
    assert row["peak_memory_bytes"] == 2005
    assert np.isnan(row["peak_resident_bytes"])


def test_cores_are_those_a_client_holds(tmp_path: Path):
    write(tmp_path, "fedavg-a", cpus_per_client=3.0)
    assert row_of(tmp_path)["cpu_hours"] == pytest.approx(3 * 10 / 3600)


def test_money_is_price_times_amount(tmp_path: Path):
    write(tmp_path, "fedavg-a", device="cuda", gpus_per_client=0.5)
    prices = Prices(currency="CHF", per_gb_sent=1e6, per_gpu_hour=3600.0, per_cpu_hour=7.0)
    row = row_of(tmp_path, prices)
    assert row["sent_price"] == pytest.approx(800 / 1e9 * 1e6)
    assert row["gpu_price"] == pytest.approx(2 + 6)
    assert row["cpu_price"] == 0
    assert row["price"] == pytest.approx(row["sent_price"] + row["gpu_price"])
    text = format_costs(cost_sheet(load(tmp_path), prices))
    assert "CHF" in text
    assert "8.80" in text


def test_only_finished_runs_count(tmp_path: Path, make_run: Callable[..., str]):
    make_run(tmp_path, "fedavg", "iid", None, 0)
    make_run(tmp_path, "fedavg", "iid", None, 1, last_round=2, status="failed")
    assert row_of(tmp_path)["num_runs"] == 1
    make_run(tmp_path / "none", "fedavg", "iid", None, 0, last_round=2, status="failed")
    with pytest.raises(ResultsError, match="no run of none is finished"):
        cost_sheet(load(tmp_path / "none"))


def test_bytes_are_those_of_the_summary(study: Study):
    keys = ["dataset", "partition", "method"]
    sheet = cost_sheet(study).set_index(keys).sort_index()
    summary = study.summary().set_index(keys).sort_index()
    assert len(sheet) == 15
    np.testing.assert_allclose(sheet["bytes_up"] + sheet["bytes_down"], summary["bytes_total"])
    np.testing.assert_allclose(sheet["client_flops"], summary["flops_total"])


def test_the_terminal_shows_units_and_no_empty_column(study: Study):
    text = format_costs(cost_sheet(study))
    assert max(map(len, text.splitlines())) <= 110
    assert "memory" not in text.partition("Means")[0]
    assert "GPU" not in text.partition("Means")[0]
    grid = cost_grids(cost_sheet(study), "all")[0]
    row = next(row for row in grid.rows if row[0] == "fedavg")
    assert row[grid.header.index("up")] == "1.5 MiB"
    assert row[grid.header.index("FLOP")] == "8.0 G"
    assert row[grid.header.index("clients")] == "2.4 s"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("per_gpu_huor: 1", "prices.yaml: unknown setting 'per_gpu_huor'; did you mean 'per_gpu_h"),
        ("per_gpu_hour: -1", "prices.yaml: per_gpu_hour is -1: it must be at least 0"),
        ("per_gpu_hour: much", "prices.yaml: per_gpu_hour is 'much': it must be a number"),
        ("per_gpu_hour: .nan", "per_gpu_hour is nan"),
        ("[1]", "prices.yaml holds [1]: give a mapping"),
        ("", "give a mapping"),
        ("a: [", "not valid YAML (line 1)"),
    ],
)
def test_bad_prices_are_explained(tmp_path: Path, text: str, says: str):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_prices(path)
    assert says in str(caught.value)


def test_prices_are_read(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(path)
    path.write_text("currency: CHF\nper_gb_sent: 0.1\nper_gpu_hour: 2\n")
    assert read_prices(path) == Prices(currency="CHF", per_gb_sent=0.1, per_gpu_hour=2)
