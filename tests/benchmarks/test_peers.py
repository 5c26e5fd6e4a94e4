"""The parts of `make bench-peers` that need neither Ray nor the peers."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import parity, rows, run_loop, stopwatch, summary
from benchmarks.peers.breakdown import breakdown
from benchmarks.peers.networks import CacheHead, Cnn
from benchmarks.peers.plot import draw
from benchmarks.peers.runners import ROOT
from benchmarks.peers.specs import SPECS
from benchmarks.peers.work import Work
from benchmarks.peers.workloads import write
from fedsim.config import Experiment
from fedsim.config.study_file import load_study
from fedsim.engine.local import run_local
from fedsim.engine.schedule import sample_cohort
from fedsim.methods import METHODS
from fedsim.models.cache import cache_logits, text_logits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def final_of_loop(work: Path, out: Path, threads: int) -> dict[str, np.ndarray]:
    try:
        run_loop.main(str(work), str(out))
    finally:
        torch.set_num_threads(threads)
    return dict(np.load(out))


def final_of_fedsim(work: Path, output: Path) -> dict[str, np.ndarray]:
    from fedsim.engine.checkpoint import CheckpointFolder

    [config] = load_study(work / "study.yaml", ["engine.backend=local"]).experiments(METHODS)
    run_local(config, output)
    last = CheckpointFolder(output, config.run_id).latest()
    assert last is not None
    return {k: v.numpy() for k, v in last["state"].items()}


@pytest.mark.parametrize("name", SPECS)
def test_fedsim_takes_the_steps_that_are_written_for_the_peers(name: str, tmp_path: Path):
    work = write(SPECS[name].tiny(), tmp_path)
    wanted = final_of_loop(work, tmp_path / "loop.npz", torch.get_num_threads())
    found = final_of_fedsim(work, tmp_path / "run")
    start = dict(np.load(work / "start.npz"))
    parity.check({k: found[k] for k in wanted}, wanted, start, SPECS[name].tolerance)


def test_a_round_is_broken_down_into_operations(tmp_path: Path):
    work = write(SPECS["w2b_sgd"].tiny(), tmp_path)
    seconds, table = breakdown(work / "study.yaml", repeats=1, rows=3)
    assert seconds > 0
    assert "aten::" in table
    assert "Self CPU time total" in table


@pytest.mark.parametrize("name", ["w1", "w2b", "w2b_sgd5"])
def test_another_order_is_no_parity(name: str, tmp_path: Path):
    work = write(SPECS[name].tiny(), tmp_path)
    threads = torch.get_num_threads()
    wanted = final_of_loop(work, tmp_path / "loop.npz", threads)
    plan = dict(np.load(work / "schedule.npz"))
    epochs, at = SPECS[name].epochs, plan["offsets"]
    for a, b in pairwise(at):
        length = (b - a) // epochs
        for epoch in range(a, b, length):
            plan["rows"][epoch : epoch + length] = plan["rows"][epoch : epoch + length][::-1]
    np.savez(work / "schedule.npz", **plan)
    found = final_of_loop(work, tmp_path / "other.npz", threads)
    off = parity.distance(found, wanted, dict(np.load(work / "start.npz")))
    assert off > SPECS[name].tolerance


def test_workloads_are_the_same_each_time_they_are_written(tmp_path: Path):
    for name in ("w1", "w2b"):
        spec = SPECS[name].tiny()
        first, again = (Work(write(spec, tmp_path / place)) for place in "ab")
        other = Work(write(replace(spec, batch=7), tmp_path / "c"))
        assert first.spec["digest"] == again.spec["digest"]
        assert first.cohorts == again.cohorts == other.cohorts
        for (x, y), (x2, y2) in zip(first.samples(1, 2), again.samples(1, 2), strict=True):
            assert x.equal(x2)
            assert y.equal(y2)


def test_the_schedule_is_fedsims_own_and_covers_each_clients_samples(tmp_path: Path):
    spec = SPECS["w2b_sgd5"].tiny()
    folder = write(spec, tmp_path)
    work = Work(folder)
    [config] = load_study(folder / "study.yaml").experiments(METHODS)
    assert isinstance(config, Experiment)
    clients = np.load(folder.parent / "cache" / "data.npz")["clients_train"]
    plan = np.load(folder / "schedule.npz")
    at = 0
    for round, cohort in enumerate(work.cohorts):
        assert cohort == sample_cohort(spec.clients, spec.cohort, config.train_seed, round + 1)
        for client in cohort:
            rows = plan["rows"][plan["offsets"][at] : plan["offsets"][at + 1]]
            for epoch in np.split(rows, spec.epochs):
                assert sorted(epoch) == np.flatnonzero(clients == client).tolist()
            at += 1


def test_the_peers_have_fedsims_torch():
    files = (ROOT / "constraints.txt", ROOT / "benchmarks" / "peers" / "requirements.txt")
    mine, theirs = ([x for x in f.read_text().splitlines() if x[:7] == "torch=="] for f in files)
    assert len(mine) == 1
    assert mine == theirs


def test_the_network_has_the_stated_size():
    assert sum(p.numel() for p in Cnn().parameters()) == 80_202


def test_the_peers_cache_is_fedsims():
    rng = torch.Generator().manual_seed(0)
    f, keys, text = (torch.randn(n, 8, generator=rng) for n in (5, 6, 3))
    f, keys, text = (torch.nn.functional.normalize(t, dim=-1) for t in (f, keys, text))
    values = torch.eye(3).repeat_interleave(2, 0)
    wanted = text_logits(f, text, 50.0) + 2.0 * cache_logits(f, keys, values, 5.5)
    found = CacheHead(keys, text, scale=50.0, ratio=2.0, sharpness=5.5)(f)
    torch.testing.assert_close(found, wanted)


def test_parity_is_relative_to_the_way_that_training_went():
    start, wanted = {"w": np.zeros(4) + 10}, {"w": np.zeros(4) + 11}
    assert parity.check({"w": wanted["w"] + 0.01}, wanted, start, 0.02) == pytest.approx(0.01)
    with pytest.raises(parity.ParityError, match="off by 0.03 of the way"):
        parity.check({"w": wanted["w"] + 0.03}, wanted, start, 0.02)
    with pytest.raises(parity.ParityError, match="NaN"):
        parity.check({"w": wanted["w"] * np.nan}, wanted, start, 0.02)
    with pytest.raises(parity.ParityError, match="plain loop"):
        parity.check({"v": wanted["w"]}, wanted, start, 0.02)


def test_where_nothing_is_trained_only_rounding_is_forgiven():
    start = {"w": np.full(4, 10.0, np.float32)}
    rounded = {"w": start["w"] * (1 + 1e-7)}
    parity.check(rounded, start, start, 0.02)
    with pytest.raises(parity.ParityError):
        parity.check({"w": start["w"] * (1 + 1e-5)}, start, start, 0.02)


def row(workload: str, runner: str, round_s: float, **more: object) -> rows.Row:
    ends = [9.0, 9 + round_s, 9 + 2 * round_s]
    versions = {"torch": "2.0"}
    usual = {"pss_mb": 900.0, "foreign": 0.0, "parity": 1e-6, "versions": versions}
    return {"workload": workload, "runner": runner, "ends": ends, **usual, **more}


def test_the_first_round_is_start_up():
    ends = [20.0, 22.0, 25.0, 27.0]
    assert summary.seconds({"ends": ends}) == 2.0
    assert summary.start_up({"ends": ends}) == 18.0


def test_goals_are_judged_by_medians():
    speed = summary.MEASURES[0]
    assert speed.goal == "3x faster than Flower, 1.6x faster than pfl-research"
    assert speed.met({"fedsim": 1.0, "flower": 3.0, "pfl": 1.6}) is True
    assert speed.met({"fedsim": 1.0, "flower": 3.0, "pfl": 1.5}) is False
    assert speed.met({"fedsim": 1.0, "flower": 3.0}) is None
    memory = summary.MEASURES[-1]
    assert memory.met({"fedsim": 1801.0, "flower": 3000.0}) is False
    assert memory.met({"fedsim": 1700.0, "flower": 1600.0}) is False
    assert memory.met({"fedsim": 1700.0, "flower": 1800.0}) is True


def test_the_table_holds_medians_spread_ratio_and_verdict():
    found = [row("w1", "fedsim", s) for s in (1.0, 1.2, 9.0)]
    found += [row("w1", "flower", 6.0), row("w1", "pfl", 1.5)]
    line = summary.table(found).splitlines()[2]
    assert "1.20 (1.00–9.00; 3)" in line
    assert "| 5.0 |" in line
    assert "**no**" in line  # 1.5 is not 1.6 x 1.2


def test_a_do_nothing_client_is_counted_per_client():
    [measure] = [m for m in summary.MEASURES if m.workload == "w1_noop"]
    assert measure.value(row("w1_noop", "fedsim", 0.05)) == pytest.approx(0.5)


def test_rows_survive_a_kill_half_way_through_a_line(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    rows.append(path, row("w1", "fedsim", 1.0))
    with path.open("a") as file:
        file.write('{"workload": "w1", "run')
    assert len(rows.read(path)) == 1


def test_what_comes_after_a_cut_line_is_read(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"workload": "w1", "run')
    rows.append(path, row("w1", "fedsim", 1.0))
    assert [r["workload"] for r in rows.read(path)] == ["w1"]


def test_clean_repetitions_ended_well_and_undisturbed():
    assert rows.is_clean(row("w1", "fedsim", 1.0, foreign=0.09), 0.1)
    assert not rows.is_clean(row("w1", "fedsim", 1.0, foreign=0.11), 0.1)
    assert not rows.is_clean(row("w1", "fedsim", 1.0, error="it failed"), 0.1)


def test_the_picture_is_drawn(tmp_path: Path):
    found = [row(m.workload, n, 1.0) for m in summary.MEASURES for n in summary.COLUMNS]
    draw(found, "a note", tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 10_000


def test_a_stopwatch_counts_from_the_start_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import json
    import time

    monkeypatch.setenv("PEERS_STARTED", repr(time.time() - 100))
    watch = stopwatch.Stopwatch()
    watch.round_done()
    watch.emit({"w": np.ones(2)}, tmp_path / "w.npz", "fedsim")
    said = json.loads(capsys.readouterr().out.removeprefix(stopwatch.PREFIX))
    assert 100 <= said["ends"][0] < 160
    assert np.load(tmp_path / "w.npz")["w"].tolist() == [1, 1]
