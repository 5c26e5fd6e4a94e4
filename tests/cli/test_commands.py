"""The commands of `fedsim`, each as a user calls it."""

import os
import re
from pathlib import Path

import pytest
import typer.main

from fedsim.cli.app import app
from fedsim.results.study import load
from tests.cli.place import STUDY, Fedsim, contents
from tests.cluster.drivers import times_asked, write_nvidia_smi

COMMANDS = (
    "run", "sweep", "resume", "report", "compare", "costs", "pack", "unpack", "partition", "doctor"
)  # fmt: skip
RUNS = Path("runs/trial")


# --- help ----------------------------------------------------------------------------------------


def test_help_names_all_commands_whole_and_all_exit_codes(fedsim: Fedsim):
    code, out, err = fedsim("--help")
    assert (code, err) == (0, "")
    listed = out.partition("Commands:")[2]
    assert re.findall(r"^  (\w+)  ", listed, re.MULTILINE) == list(COMMANDS)
    assert "..." not in listed  # each says what it does in one whole line
    assert re.findall(r"\s(\d+)  \w", out.partition("Exit codes:")[2]) == [
        "0", "5", "1", "6", "7", "2", "8", "3", "130", "4"
    ]  # fmt: skip
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_every_argument_and_option(fedsim: Fedsim, name: str):
    code, out, _ = fedsim(name, "--help")
    assert code == 0
    words = " ".join(out.split())
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert len(parameter.help) > 10, parameter.name
        assert " ".join(parameter.help.split()) in words
        assert (parameter.metavar or parameter.opts[-1]) in out
    assert "{config}" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_without_a_command_help_is_shown(fedsim: Fedsim):
    code, out, err = fedsim()
    assert (code, out) == (2, "")
    assert "Commands:" in err


# --- run -----------------------------------------------------------------------------------------


def test_a_run_tells_its_rounds_and_ends_with_the_table(fedsim: Fedsim, place: Path):
    code, out, err = fedsim("run", "study.yaml")
    assert code == 0
    assert [line.split("|")[0].split()[-1] for line in err.splitlines()] == ["fedavg_head"] * 3
    assert [re.search(r"round (\d)", line)[1] for line in err.splitlines()] == ["0", "1", "2"]  # type: ignore[index]
    assert "dirichlet_label 1" in out
    assert "report: runs/trial/report.html" in out
    assert (RUNS / "report.html").is_file()
    before = load(RUNS).rounds
    code, again, err = fedsim("run", "study.yaml")  # it is finished: only the table
    assert (code, again, err) == (0, out, "")
    assert load(RUNS).rounds.equals(before)


@pytest.mark.usefixtures("no_report")
def test_overrides_reach_the_run(fedsim: Fedsim, place: Path):
    words = (
        "method=zero_shot seed=3 train.lr=1e-3 output=elsewhere study=other partition.scheme=iid"
    )
    assert fedsim("run", "study.yaml", *words.split()).code == 0
    (run,) = load("elsewhere/other").runs.to_dict("records")
    assert (run["method"], run["seed"], run["partition"]) == ("zero_shot", 3, "iid")
    assert run["config.train.lr"] == 0.001
    assert run["config.partition.dirichlet_alpha"] is None
    assert not Path("runs").exists()


@pytest.mark.usefixtures("no_report")
def test_ctrl_c_says_how_to_go_on(fedsim: Fedsim, place: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedsim.engine.local.run_local", interrupted)
        code, _, err = fedsim("run", "study.yaml")
        assert code == 130
        assert err.strip() == (
            "interrupted; what was committed is kept; to go on: fedsim resume runs/trial"
        )
        grid = "tune={grid: {fedavg_head: {train.lr: [0.1, 1.0]}}}"
        code, _, err = fedsim("sweep", "study.yaml", "--tune", grid, "study=tuned")
        assert (code, "start the same command again" in err) == (130, True)
    assert fedsim("resume", RUNS).code == 0
    assert set(load(RUNS).runs.status) == {"finished"}
    code, _, err = fedsim("resume", "runs/tuned")
    assert code == 7
    assert "tuning trials only" in err
    assert "--tune" in err


def test_an_error_of_ours_is_not_hidden(place: Path, monkeypatch: pytest.MonkeyPatch):
    from fedsim.cli.app import main

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fedsim.cli.runs.check_data", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run", "study.yaml"], leave=lambda code: None)


# --- sweep, resume, report -----------------------------------------------------------------------

OWN = """
from fedsim.methods.fedavg_head import FedAvgHead

class Mine(FedAvgHead):
    def setup(self, task, rng):
        if task.config.seed == {seed}:
            raise ValueError("not this seed")
        return super().setup(task, rng)
"""


def test_a_sweep_with_a_failing_cell(fedsim: Fedsim, place: Path, request: pytest.FixtureRequest):
    Path("mine.py").write_text(OWN.format(seed=1))
    command = ["sweep", "study.yaml", "methods={mine: {use: mine.py}}", "seeds=[0, 1]"]
    command += ["train.rounds=1"]
    code, out, err = fedsim(*command)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 5, err
    assert "[1/4] fedavg_head | dirichlet_label 1 | seed 0  round 1  accuracy" in lines[0]
    assert lines[3] == "failed: mine | dirichlet_label 1 | seed 1: ValueError: not this seed"
    assert lines[4].startswith("fedsim: 1 of 4 runs failed")
    assert lines[4].endswith("fedsim resume runs/trial")
    assert "mine" in out
    page = (RUNS / "report.html").read_text()
    assert "not this seed" in page
    request.getfixturevalue("no_report")
    # The file is mended: only what its content changes is run again.
    Path("mine.py").write_text(OWN.format(seed=2))
    code, _, err = fedsim(*command)
    assert code == 0, err
    assert len(err.splitlines()) == 2
    assert all("mine" in line for line in err.splitlines())
    code, _, err = fedsim(*command)
    assert (code, err) == (0, "all 4 runs are finished\n")
    code, _, err = fedsim("resume", RUNS)
    assert (code, err) == (0, "all 4 runs are finished\n")


def test_a_failing_run_alone_is_told_by_its_client(fedsim: Fedsim, place: Path):
    code, _, err = fedsim("run", "study.yaml", "train.lr=1e38")
    assert code == 6
    last = err[err.index("fedsim: ") :]
    assert re.match(r"fedsim: client \d failed in round 1 on ", last)
    assert "its update was refused" in last
    assert "Traceback" not in err


def test_the_report_can_be_written_at_any_time(fedsim: Fedsim, place: Path):
    assert fedsim("run", "study.yaml", "train.rounds=1").code == 0
    (RUNS / "report.html").unlink()
    before = contents(RUNS)
    code, out, err = fedsim("report", RUNS)
    assert (code, err) == (0, "")
    assert "fedavg_head" in out
    after = contents(RUNS)
    assert set(after) - set(before) == {"report.html"}
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("no_report")
def test_the_table_is_also_written_for_a_paper(fedsim: Fedsim, place: Path):
    assert fedsim("run", "study.yaml", "train.rounds=1").code == 0
    code, out, err = fedsim("report", RUNS, "--csv", "t/table.csv", "--latex", "t/table.tex")
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == ["written: t/table.csv", "written: t/table.tex"]
    header, row = Path("t/table.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(cells["accuracy_mean"]) == load(RUNS).rounds["accuracy"].iloc[-1]
    assert r"fedavg\_head & " in Path("t/table.tex").read_text()


# --- compare -------------------------------------------------------------------------------------


@pytest.fixture
def two_studies(fedsim: Fedsim, place: Path, no_report: None) -> tuple[Path, Path]:
    """Two studies of two seeds on the same split, with another learning rate in the second."""
    for words in ("study=a", "study=b train.lr=0.5"):
        words += " seeds=[0,1] train.rounds=1"
        assert fedsim("sweep", "study.yaml", *words.split()).code == 0
    return Path("runs/a"), Path("runs/b")


def test_studies_are_compared_side_by_side(fedsim: Fedsim, two_studies: tuple[Path, Path]):
    before = contents(Path("runs"))
    code, out, err = fedsim("compare", *two_studies, "--csv", "c.csv", "--margin", "0.3")
    assert (code, err) == (0, "")
    assert contents(Path("runs")) == before
    assert "vs fedavg_head [a]" in out
    assert "fedavg_head [b]" in out
    assert "no more than 0.3 points below" in out
    assert len(Path("c.csv").read_text().splitlines()) == 3
    rows = [load(folder).rounds.query("round == 1") for folder in two_studies]
    a, b = (frame.sort_values("run_id")["accuracy"].mean() for frame in rows)
    line = next(line for line in out.splitlines() if "fedavg_head [b]" in line)
    shown = re.search(r"([+-]\d+\.\d) ±", line)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(100 * (b - a), abs=0.051)
    code, out, _ = fedsim("compare", *two_studies, "--reference", "fedavg_head [b]")
    assert (code, "vs fedavg_head [b]" in out) == (0, True)
    words = ("--method", "fedavg_head [a]", "--partition", "dirichlet_label 1")
    code, out, err = fedsim("compare", *two_studies, *words)
    assert (code, "fedavg_head [a]" in out, "[b]" in out) == (0, True, False)
    assert err == "fedsim: none of b's runs is asked for\n"


def test_what_is_not_finished_is_told_before_the_comparison(
    fedsim: Fedsim, two_studies: tuple[Path, Path]
):
    from fedsim.results.tables.writer import TableWriter

    run_id = load(two_studies[1]).runs["run_id"][0]
    with TableWriter(two_studies[1], run_id) as writer:
        writer.update_run(status="interrupted")
    code, out, err = fedsim("compare", *two_studies)
    assert code == 0
    assert err == "fedsim: 1 of 2 runs of b are not finished: they are not counted\n"
    assert "1+1?" in out


# --- costs ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_costs_are_printed_written_and_priced(fedsim: Fedsim, place: Path):
    assert fedsim("run", "study.yaml").code == 0
    Path("prices.yaml").write_text("currency: CHF\nper_gb_sent: 1000000000\n")
    code, out, err = fedsim("costs", RUNS, "--prices", "prices.yaml", "--csv", "costs.csv")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "written: costs.csv"
    header, row = Path("costs.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    table = load(RUNS).rounds
    sent = int(table.bytes_up.sum() + table.bytes_down.sum())
    assert float(cells["sent_price"]) == sent  # one CHF per byte
    assert float(cells["bytes_up_per_client"]) == table.bytes_up.sum() / 4
    assert f"{sent}.00" in out
    Path("prices.yaml").write_text("per_gb: 1\n")
    code, _, err = fedsim("costs", RUNS, "--prices", "prices.yaml")
    assert (code, "unknown setting 'per_gb'" in err) == (2, True)


# --- partition -----------------------------------------------------------------------------------


def test_a_partition_is_shown_and_drawn(fedsim: Fedsim, place: Path):
    axis = "partitions=[{dirichlet_alpha: 0.1}, {scheme: iid}, {scheme: pathological, "
    axis += "classes_per_client: 2, num_clients: 35}]"
    before = contents(place)
    picture = Path("plots/split.png")
    code, out, err = fedsim("partition", "study.yaml", axis, "--out", picture)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if "seed 0" in line]
    assert rows[0][:4] == ["dirichlet_label", "0.1,", "seed", "0"]
    assert rows[1][:5] == ["iid,", "seed", "0", "4", "20/20/20"]
    assert "…" not in out  # no number is cut
    counts = [int(line.rpartition("=")[2]) for line in out.splitlines() if " = " in line]
    assert sum(counts[:4]) == sum(counts[4:8]) == 80
    assert "... and 5 more clients" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert set(contents(place)) - set(before) == {"plots", "plots/split.png"}


def test_splits_of_one_name_are_told_apart_and_domains_are_shown(fedsim: Fedsim, place: Path):
    import numpy as np

    labels, pixels = np.arange(120) % 3, np.zeros((120, 4, 4), np.uint8)
    np.savez("styles.npz", x=pixels, y=labels, domain=np.array(["ink", "oil"])[np.arange(120) % 2])
    axis = "partitions=[{scheme: domain, num_clients: 2}, {scheme: domain, num_clients: 3}]"
    code, out, err = fedsim("partition", "digits.yaml", "data.name=styles.npz", axis)
    assert code == 0, err
    assert [n for n in (2, 3) if f"domain, {n} clients, seed 0: samples per" in out] == [2, 3]
    ends = [line.partition(" = ")[2] for line in out.splitlines() if line.startswith("  client ")]
    assert [end.split()[1] for end in ends[:2]] == ["ink", "oil"]
    assert all(end.split()[0] == end.split()[2] for end in ends)
    code, out, err = fedsim(
        "partition", "digits.yaml", "data.name=styles.npz", "partition.scheme=iid",
        "partition.num_clients=1",
    )  # fmt: skip
    assert re.search(r"= (\d+)  (ink|oil) \d+, (ink|oil) \d+$", out, re.M), out + err


def test_many_classes_are_shown_as_shades(fedsim: Fedsim, place: Path):
    import numpy as np

    labels = np.repeat(np.arange(20), 10)
    pixels = np.zeros((200, 4, 4), np.uint8)
    np.savez("many.npz", x=pixels, y=labels)
    code, out, err = fedsim("partition", "digits.yaml", "data.name=many.npz")
    assert code == 0, err
    line = next(line for line in out.splitlines() if "client    0" in line)
    assert re.fullmatch(r"  client    0 [ .:\-=+*#%@]{20}  = \d+", line)


# --- dry run -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_report")
def test_a_dry_run_says_what_would_be_done_and_does_nothing(fedsim: Fedsim, place: Path):
    command = ["sweep", "study.yaml", "methods=[zero_shot, fedavg_head]", "seeds=[0, 1]"]
    command += ["train.participation=0.5", "train.rounds=3"]
    before = contents(place)
    code, out, err = fedsim(*command, "--dry-run")
    assert (code, err) == (0, "")
    assert "4 runs into runs/trial: 0 finished, 4 to do" in out
    assert "partitions: dirichlet_label 1\n" in out
    assert "seeds: 0, 1\n" in out
    assert "placement: all clients in this process" in out
    assert contents(place) == before
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["fedavg_head"])
    assert row[:6] == ["fedavg_head", "2", "3", "2", "of", "4"]
    assert fedsim(*command).code == 0
    assert "4 runs into runs/trial: 4 finished, 0 to do" in fedsim(*command, "--dry-run").out


@pytest.mark.usefixtures("no_report")
def test_the_bytes_of_a_dry_run_are_those_of_the_run(fedsim: Fedsim, place: Path):
    from fedsim.config.study_file import load_study
    from fedsim.driver.traffic import traffic
    from fedsim.methods import METHODS

    text = STUDY.replace("{fedavg_head: {}}", "{random: {use: cachefl, cache.init: random}}")
    Path("random.yaml").write_text(text)
    words = ["train.participation=0.5", "train.rounds=3"]
    (config,) = load_study("random.yaml", words).experiments(METHODS)
    sent = traffic(config)
    assert sent.early == 0
    assert fedsim("run", "random.yaml", *words).code == 0
    table = load(RUNS).rounds
    assert table.bytes_up.sum() == sent.num_rounds * 2 * sent.up
    total = sent.of_a_run(num_clients=4, cohort_size=2, train_seed=config.train_seed)
    assert table.bytes_up.sum() + table.bytes_down.sum() == total


def test_a_dry_run_shows_the_arithmetic_of_the_placement(fedsim: Fedsim, place: Path):
    command = "run study.yaml engine.backend=ray resources.cpus_per_client=0.001 --dry-run"
    code, out, err = fedsim(*command.split())
    assert (code, err) == (0, "")
    assert re.search(r"placement: 1 node\(s\) with \d+ CPU.* hold \d+ client actors", out)
    assert not Path("runs").exists()


def test_a_dry_run_on_this_machine_knows_the_memory_of_its_gpus(
    fedsim: Fedsim, place: Path, monkeypatch: pytest.MonkeyPatch
):
    driver = write_nvidia_smi(place / "driver", "printf '81559\\n24564\\n'")
    monkeypatch.setenv("PATH", f"{driver}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    dry = ["run", "study.yaml", "engine.backend=ray", "resources.cpus_per_client=0.1", "--dry-run"]
    code, out, _ = fedsim(*dry)
    assert (code, times_asked(driver)) == (0, 0)
    assert "hold 8 client actors of 0.1 CPUs and 0.25 GPUs" in out
    need = f"resources.gpu_memory_bytes_per_client={7 * 2**30}"
    code, out, _ = fedsim(*dry, need)
    assert (code, times_asked(driver)) == (0, 1)
    assert "hold 6 client actors of 0.1 CPUs and 0.333333 GPUs" in out
    assert "3 x 7.0 GiB on a GPU of 24.0 GiB" in out
    code, _, err = fedsim(*dry, need, "resources.gpus_per_client=0.25")
    assert code == 5
    assert "4 x 7.0 GiB = 28.0 GiB, but 90% of its 24.0 GiB is 21.6 GiB" in err


# --- Ray -----------------------------------------------------------------------------------------


@pytest.mark.ray
def test_commands_through_ray(fedsim: Fedsim, place: Path):
    command = ["sweep", "study.yaml", "engine.backend=ray", "seeds=[0, 1]"]
    code, out, err = fedsim(*command)
    assert code == 0, err
    assert [line.count("[1/2]") + line.count("[2/2]") for line in err.splitlines()] == [1, 1]
    assert "report: runs/trial/report.html" in out
    assert fedsim("resume", RUNS).err == "all 2 runs are finished\n"


@pytest.mark.ray
def test_a_sweep_whose_output_is_a_url(
    fedsim: Fedsim, place: Path, monkeypatch: pytest.MonkeyPatch
):
    bucket = f"file://{place}/bucket/runs"
    command = ["sweep", "study.yaml", "engine.backend=ray", "seeds=[0, 1]", f"output={bucket}"]
    code, out, err = fedsim(*command)
    assert code == 0, err
    there = place / "bucket" / "runs" / "trial"
    assert {path.name for path in there.iterdir()} >= {"plan.json", "report.html", "checkpoints"}
    assert set(load(there).runs.status) == {"finished"}
    monkeypatch.setenv("FEDSIM_CACHE", str(place / "another-machine"))
    assert fedsim("resume", f"{bucket}/trial").err == "all 2 runs are finished\n"
    code, table, err = fedsim("report", f"{bucket}/trial")
    assert code == 0, err
    assert table.splitlines()[:8] == out.splitlines()[:8]
