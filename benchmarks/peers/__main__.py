"""fedsim beside other simulators: python -m benchmarks.peers measure, then report (`README.md`)."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.peers import parity, rows, summary
from benchmarks.peers.plot import draw
from benchmarks.peers.runners import ROOT, RUNNERS, run, torch_build
from benchmarks.peers.specs import SPECS, Spec

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Out = Annotated[Path, typer.Option(help="Where everything goes.")]
Foreign = Annotated[
    float, typer.Option(help="A repetition is clean if others used less of all cores.")
]
_BEGIN, _END = "<!-- begin: python -m benchmarks.peers report -->", "<!-- end -->"


@app.command()
def measure(
    out: Out = Path("runs/peers"),
    reps: Annotated[int, typer.Option(min=1, help="Clean repetitions of each.")] = 5,
    only: Annotated[str, typer.Option(help="Workloads, by comma; all by default.")] = "",
    runners: Annotated[str, typer.Option(help="Runners, by comma; beside the plain loop.")] = "",
    foreign: Foreign = 0.1,
    patience: Annotated[float, typer.Option(help="Seconds to wait for an idle machine.")] = 60.0,
    peers: Annotated[Path, typer.Option(help="The peers' environment.")] = Path(".venv-peers"),
    tiny: Annotated[bool, typer.Option(help="Small workloads: to try it, not to measure.")] = False,
) -> None:
    """Run everything, interleaved; go on where an earlier start was stopped; then report."""
    from benchmarks.peers.workloads import write

    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runner in flight, too
    specs = [spec.tiny() if tiny else spec for spec in _chosen(only, SPECS, "workload")]
    asked = [runner.name for runner in _chosen(runners, RUNNERS, "runner")] if runners else []
    python = (peers / "bin" / "python").absolute()
    if not python.is_file():
        raise typer.BadParameter(f"{peers} is no virtual environment: `make bench-peers` makes it")
    builds = torch_build(Path(sys.executable)), torch_build(python)
    if builds[0] != builds[1]:
        raise typer.BadParameter(
            f"fedsim's torch is {builds[0]}, that of {peers} is {builds[1]}: install fedsim's there"
        )
    out = (out if not tiny else out.with_name(f"{out.name}-tiny")).absolute()
    for folder in (out / "logs", out / "weights"):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ["FEDSIM_CACHE"] = str(out / "work" / "prepared")
    with console.status("writing the workloads"):
        works = {spec.name: write(spec, out / "work") for spec in specs}
    setting = rows.setting(ROOT, map(_digest, works.values()), _machine())
    plan = [(spec, name) for spec in specs for name in _order(spec, asked)]
    journal = out / "results.jsonl"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=reps * len(plan))
        for _ in range(2 * reps):  # those that are not clean are run again, but not for ever
            done = _clean(journal, setting, foreign)
            counts = {key: len(_of(done, *key)) for key in ((s.name, n) for s, n in plan)}
            progress.update(bar, completed=sum(min(reps, count) for count in counts.values()))
            if all(count >= reps for count in counts.values()):
                break
            for spec, name in plan:
                wanted = out / "weights" / f"{setting}-{spec.name}-loop.npz"
                if counts[spec.name, name] >= reps and (name != "loop" or wanted.is_file()):
                    continue
                progress.update(bar, description=f"{spec.name} {name}")
                weights = out / "weights" / f"{setting}-{spec.name}-{name}.npz"
                log = out / "logs" / f"{spec.name}-{name}.log"
                row: rows.Row = {"setting": setting, "workload": spec.name, "runner": name}
                row |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
                row |= run(RUNNERS[name], works[spec.name], weights, log, python, patience)
                if "error" not in row:
                    row |= _parity(weights, wanted, works[spec.name] / "start.npz", spec.tolerance)
                rows.append(journal, row)
                progress.advance(bar, int(rows.is_clean(row, foreign)))
                console.print(_line(row), highlight=False, soft_wrap=True)
                if row.get("unequal"):
                    raise SystemExit(f"{spec.name}, {name}: {row['error']}")
    report(out, foreign)
    done = _clean(journal, setting, foreign)
    short = [f"{s.name} {n}" for s, n in plan if len(_of(done, s.name, n)) < reps]
    if short:
        raise SystemExit(f"fewer than {reps} clean repetitions: {', '.join(short)}")


@app.command()
def report(
    out: Out = Path("runs/peers"),
    foreign: Foreign = 0.1,
    publish: Annotated[bool, typer.Option(help="Also put it into this folder's README.")] = False,
) -> None:
    """Write table.md and peers.png from the latest setting's clean repetitions."""
    found = rows.read(out / "results.jsonl")
    if not found:
        raise typer.BadParameter(f"no results in {out}: run `make bench-peers`")
    clean = [row for row in found if row["setting"] == found[-1]["setting"]]
    clean = [row for row in clean if rows.is_clean(row, foreign)]
    note = _note(clean)
    extra = sorted({row["runner"] for row in clean} - set(summary.COLUMNS))
    worst = summary.worst_parity(clean)
    parts = [
        summary.table(clean, extra),
        "Cells: median over repetitions (least–most; how many). " + note,
        "Largest distance of the final weights from the plain loop's, relative to the way that "
        "training went: " + ", ".join(f"{n} {off:.1g}" for n, off in sorted(worst.items())) + ".",
    ]
    text = "\n\n".join(parts) + "\n"
    (out / "table.md").write_text(text)
    draw(clean, note, out / "peers.png")
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
    if publish:
        readme = Path(__file__).with_name("README.md")
        before, _, rest = readme.read_text().partition(_BEGIN)
        block = f"{_BEGIN}\n\n{text}\n![the same as bars](peers.png)\n\n{_END}"
        readme.write_text(before + block + rest.partition(_END)[2])
        draw(clean, note, readme.with_name("peers.png"))


@app.command()
def profile(
    workload: Annotated[str, typer.Argument(help="Its name.")],
    out: Out = Path("runs/peers"),
    tiny: Annotated[bool, typer.Option(help="A small one: to try it, not to measure.")] = False,
) -> None:
    """Where fedsim's clients spend a round: one thread of this process, without Ray."""
    from benchmarks.peers.breakdown import breakdown
    from benchmarks.peers.workloads import write

    [spec] = _chosen(workload, SPECS, "workload")
    folder = (out / "profiled").absolute()
    os.environ["FEDSIM_CACHE"] = str(folder / "prepared")
    study = write(spec.tiny() if tiny else spec, folder) / "study.yaml"
    seconds, table = breakdown(study)
    console = Console()
    console.print(table, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{workload}: a round's clients take {seconds:.2f} s of one core")


def _chosen(given: str, known: dict[str, Any], what: str) -> list[Any]:
    names = [name.strip() for name in given.split(",")] if given else list(known)
    wrong = [name for name in names if name not in known]
    if wrong:
        raise typer.BadParameter(f"no {what} {wrong[0]!r}: choose from {', '.join(known)}")
    return [known[name] for name in names]


def _order(spec: Spec, asked: list[str]) -> list[str]:
    """Who runs a workload; the plain loop first, which the others are compared with."""
    able = [n for n in asked if spec.runners.count(n.partition("_")[0])] or list(spec.runners)
    return ["loop", *(name for name in able if name != "loop")]


def _digest(work: Path) -> str:
    return str(json.loads((work / "spec.json").read_text())["digest"])


def _machine() -> tuple[object, ...]:
    from fedsim.process import describe_machine

    about = describe_machine()
    names = ("cpu_name", "num_cpus", "python_version", "torch_version")
    return (*(about[name] for name in names), version("ray"))


def _clean(journal: Path, setting: str, foreign: float) -> list[rows.Row]:
    found = (row for row in rows.read(journal) if row["setting"] == setting)
    return [row for row in found if rows.is_clean(row, foreign)]


def _of(found: list[rows.Row], workload: str, runner: str) -> list[rows.Row]:
    return [row for row in found if (row["workload"], row["runner"]) == (workload, runner)]


def _parity(weights: Path, wanted: Path, start: Path, tolerance: float) -> rows.Row:
    sides = [dict(np.load(path)) for path in (weights, wanted, start)]
    try:
        return {"parity": parity.check(*sides, tolerance)}
    except parity.ParityError as error:
        return {"unequal": True, "error": str(error)}


def _line(row: rows.Row) -> str:
    head = f"{row['workload']:9} {row['runner']:12}"
    if "error" in row:
        return f"{head} {row['error']}"
    return (
        f"{head} {summary.seconds(row):8.3f} s/round {summary.start_up(row):6.1f} s to start "
        f"{row['pss_mb']:6.0f} MiB  parity {row['parity']:.1e}  others {row['foreign']:.1%}"
    )


def _note(clean: list[rows.Row]) -> str:
    """Versions, hardware and date."""
    from fedsim.process import describe_machine

    about = describe_machine()
    mine: dict[str, str] = {}
    theirs: dict[str, str] = {}
    for row in clean:
        (theirs if RUNNERS[row["runner"]].peer else mine).update(row["versions"])
    ray = f"Ray {mine.get('ray', '?')} under fedsim, {theirs.get('ray', '?')} under Flower"
    memory = psutil.virtual_memory().total / 2**30
    last = max((row["time"] for row in clean), default="?")[:10]
    return (
        f"{last}; {about['num_cpus']} cores of {about['cpu_name']}, {memory:.0f} GiB; "
        f"Python {about['python_version']}, torch {mine.get('torch', theirs.get('torch'))}, "
        f"fedsim {mine.get('fedsim', '?')}, Flower {theirs.get('flwr', '?')}, "
        f"pfl {theirs.get('pfl', '?')}; {ray}."
    )


if __name__ == "__main__":
    app()
