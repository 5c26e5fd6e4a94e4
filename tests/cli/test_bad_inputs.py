"""Bad inputs, as a user meets them: one message, the documented exit code, nothing half-written."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from fedsim.cli.app import main
from fedsim.config.study import load_study
from fedsim.driver.launch import read_plan, study_lock, write_plan
from fedsim.methods import METHODS as METHODS_KNOWN
from fedsim.results.study import load
from fedsim.results.tables.writer import TableWriter
from tests.cli.place import STUDY, Fedsim, contents, damaged, write_study
from tests.helpers import feature_arrays

pytestmark = pytest.mark.usefixtures("no_report")


class Bad(NamedTuple):
    """A command that has to be refused.

    Attributes:
        name: Of the test.
        command: Words after `fedsim`, split as a shell does.
        code: Exit code.
        says: What the message holds, in this order.
        make: Makes the files that the command reads.
    """

    name: str
    command: str
    code: int
    says: list[str]
    make: Callable[[], object] = lambda: None

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command)


def study(text: str) -> Callable[[], object]:
    """Writes the file that the command is about."""
    return lambda: Path("bad.yaml").write_text(text)


def method_file(name: str, text: str) -> Callable[[], object]:
    return lambda: Path(name).write_text(text)


def npz(**changes: object) -> Callable[[], object]:
    return lambda: damaged("bad.npz", **changes)


def images(**changes: object) -> Callable[[], object]:
    pixels = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32)

    def make() -> None:
        pixels[3, 2, 2] = np.nan
        np.savez("bad.npz", x=pixels, y=np.arange(60) % 4)

    return make


def truncated() -> None:
    whole = Path("features.npz").read_bytes()
    Path("bad.npz").write_bytes(whole[: len(whole) // 2])


CLIP = "models.clip=tiny-clip models.generator=tiny-diffusion"
NOT_A_NUMBER = np.where(np.arange(640).reshape(80, 8) == 24, np.nan, 1.0).astype(np.float32)

STUDY_FILES = [
    Bad("file_missing", "run stduy.yaml", 2, ["'stduy.yaml'", "did you mean 'study.yaml'"]),
    Bad("folder_missing", "run nowhere/study.yaml", 2, ["there is no folder 'nowhere'"]),
    Bad("folder", "run .", 2, ["'.' is a folder", "digits.yaml, study.yaml"]),
    Bad(
        "no_yaml",
        "sweep bad.yaml",
        2,
        ["bad.yaml is not valid YAML", "expected ',' or ']'", "line 2, column 8"],
        study("seeds: [0, 1\nmethods: {}"),
    ),
    Bad("tabs", "sweep bad.yaml", 2, ["spaces, not tabs (line 2"], study("train:\n\tlr: 1")),
    Bad(
        "key_twice",
        "sweep bad.yaml",
        2,
        ["the key 'train' is given twice", "line 8"],
        study(STUDY + "train: {lr: 1.0}"),
    ),
    Bad("no_mapping", "sweep bad.yaml", 2, ["holds ['a', 'b']", "mapping"], study("[a, b]")),
    Bad("empty", "partition bad.yaml", 2, ["bad.yaml is empty", "methods:"], study("")),
    Bad("binary", "run features.npz", 2, ["features.npz is not text in UTF-8"]),
]

SETTINGS = [
    Bad("section", "run study.yaml trian.lr=1", 2, ["unknown setting 'trian'", "'train'?"]),
    Bad("key", "run study.yaml train.momentun=0.9", 2, ["'train.momentun'", "'momentum'?"]),
    Bad("elsewhere", "run study.yaml lr=1", 2, ["unknown setting 'lr'", "'train.lr'"]),
    Bad(
        "other_section",
        "run study.yaml train.num_clients=3",
        2,
        ["'train.num_clients'", "'partition.num_clients'?"],
    ),
    Bad(
        "key_of_a_method",
        "run bad.yaml",
        2,
        ["bad.yaml: methods.mine: unknown setting 'cache.sharpnes'; did you mean 'sharpness'?"],
        study(STUDY.replace("{fedavg_head: {}}", "{mine: {use: cachefl, cache.sharpnes: 1.0}}")),
    ),
    Bad(
        "fraction", "run study.yaml train.rounds=1.5", 2, ["train.rounds is 1.5: ", "whole number"]
    ),
    Bad("word", "run study.yaml train.lr=fast", 2, ["train.lr is 'fast': ", "a number"]),
    Bad("null", "run study.yaml train.lr=null", 2, ["train.lr is empty (null): ", "a number"]),
    Bad("negative_lr", "run study.yaml train.lr=-1", 2, ["train.lr is -1: it must be above 0"]),
    Bad("nan", "run study.yaml train.lr=.nan", 2, ["train.lr is nan: ", "finite"]),
    Bad("alpha_0", "run study.yaml partition.dirichlet_alpha=0", 2, ["dirichlet_alpha is 0: "]),
    Bad(
        "alpha_of_the_second_partition",
        "sweep bad.yaml",
        2,
        ["partitions.1: partition.dirichlet_alpha is -0.5: it must be above 0"],
        study(STUDY + "partitions: [{scheme: iid}, {dirichlet_alpha: -0.5}]"),
    ),
    Bad(
        "alpha_missing",
        "partition study.yaml partition.dirichlet_alpha=null",
        2,
        ["partition: ", "'dirichlet_label' needs partition.dirichlet_alpha"],
    ),
    Bad(
        "classes_missing",
        "partition study.yaml partition.scheme=pathological",
        2,
        ["'pathological' needs partition.classes_per_client"],
    ),
    Bad("participation_0", "run study.yaml train.participation=0", 2, ["is 0: ", "above 0"]),
    Bad("participation_2", "run study.yaml train.participation=2", 2, ["is 2: ", "at most 1"]),
    Bad(
        "gpus_1.5",
        "run study.yaml resources.gpus_per_client=1.5",
        2,
        ["gpus_per_client is 1.5", "a fraction up to 1, or a whole number"],
    ),
    Bad(
        "auto_or_number",
        "run study.yaml engine.group_size=big",
        2,
        ["study.yaml: engine.group_size is 'big': it must be a whole number or 'auto'"],
    ),
    Bad(
        "holdout_0_and_tune",
        "sweep study.yaml --tune evaluation.holdout_fraction=0 "
        "'tune={grid: {fedavg_head: {train.lr: [0.1, 1.0]}}}'",
        2,
        ["held-out client data", "holdout_fraction"],
    ),
    Bad(
        "reference",
        "sweep study.yaml report.reference_method=fedavg_haed",
        2,
        ["report.reference_method", "'fedavg_haed'", "did you mean 'fedavg_head'?"],
    ),
    Bad("no_override", "run study.yaml train.lr", 2, ["'train.lr' must look like train.lr=0.1"]),
    Bad("broken_override", "run study.yaml seeds=[0", 2, ["'seeds=[0'", "not valid YAML"]),
    Bad("seed", "run study.yaml seed=one", 2, ["seeds.0 is 'one'", "whole number"]),
    Bad("no_seeds", "run study.yaml seeds=[]", 2, ["seeds is empty: give at least one"]),
    Bad("same_twice", "sweep study.yaml seeds=[1,1]", 2, ["the same run is given twice", "seeds"]),
    Bad(
        "backends",
        "sweep bad.yaml",
        2,
        ["engine.backend: ", "the same, ray or local"],
        study(
            STUDY.replace("{fedavg_head: {}}", "{fedavg_head: , zero_shot: {engine.backend: ray}}")
        ),
    ),
]

CHOICES = [
    ("partition.scheme=dirichlet_lable", "dirichlet_label"),
    ("train.optimizer=adam", "adamw"),
    ("failures.policy=retyr", "retry"),
    ("cache.init=publicshots", "public_shots"),
    ("engine.backend=lcoal", "local"),
]

METHODS = [
    Bad(
        "method", "run study.yaml method=fedavg_haed", 2, ["fedavg_haed", "did you mean 'fedavg_h"]
    ),
    Bad(
        "option",
        f"run study.yaml {CLIP} method=synthetic_only methods.synthetic_only.options.modle=head",
        2,
        ["methods.synthetic_only.options: unknown setting 'modle'; did you mean 'model'?"],
    ),
    Bad(
        "option_of_none",
        "run study.yaml methods.fedavg_head.options.depth=2",
        2,
        ["methods.fedavg_head.options: fedavg_head has no options"],
    ),
    Bad(
        "no_file",
        "run study.yaml methods.fedavg_head.use=mien.py",
        2,
        ["methods.fedavg_head: no method file 'mien.py'", "did you mean 'mine.py'?"],
        method_file("mine.py", ""),
    ),
    Bad(
        "file_without_method",
        "run study.yaml methods.fedavg_head.use=mine.py",
        2,
        ["mine.py holds no method", "subclass of fedsim.methods.base.Method"],
        method_file("mine.py", "class Mine: pass"),
    ),
    Bad(
        "file_fails",
        "run study.yaml methods.fedavg_head.use=mine.py",
        2,
        ["mine.py fails to import: ModuleNotFoundError: No module named 'nosuch_'"],
        method_file("mine.py", "import nosuch_"),
    ),
    Bad(
        "images_wanted",
        "run study.yaml method=fedavg_finetune",
        2,
        ["'fedavg_finetune' trains on images", "'features.npz' holds precomputed features"],
    ),
    Bad(
        "generated_without_models",
        "run study.yaml method=cachefl",
        2,
        ["methods.cachefl: a generated set needs models.clip", "cache.init: text"],
    ),
    Bad(
        "generated_beside_other_features",
        f"run study.yaml method=cachefl {CLIP}",
        2,
        ["features have 8 numbers", "models.clip 'tiny-clip' makes 64", "cache.init: text"],
    ),
    Bad(
        "no_text",
        "run study.yaml data.name=bad.npz",
        2,
        ["'bad.npz' come without text features", "add text_features"],
        npz(text_features=None),
    ),
]

DATA = [
    Bad("no_data", "run study.yaml data.name=feature.npz", 3, ["did you mean 'features.npz'?"]),
    Bad("no_built_in", "run study.yaml data.name=digit", 3, ["digit: ", "did you mean 'digits'?"]),
    Bad("no_npz", "run study.yaml data.name=study.yaml", 3, ["not a .npz file or a folder"]),
    Bad(
        "column",
        "partition study.yaml data.label_column=targets",
        3,
        ["label_column is 'targets'", "no 'targets_train'", "y_train"],
    ),
    Bad("truncated", "run study.yaml data.name=bad.npz", 3, ["truncated", "copy it"], truncated),
    Bad(
        "pickled",
        "run study.yaml data.name=bad.npz",
        3,
        ["bad.npz: 'y_train' is a pickled object array", "plain dtype"],
        npz(y_train=np.array([{"label": 1}] * 80, dtype=object)),
    ),
    Bad(
        "nan_features",
        "run study.yaml data.name=bad.npz",
        3,
        ["1 of 80 rows hold NaN", "the first is row 3", "drop or repair"],
        npz(x_train=NOT_A_NUMBER),
    ),
    Bad(
        "nan_images",
        "run digits.yaml data.name=bad.npz",
        3,
        ["bad.npz: x", "1 of 60 rows hold NaN", "the first is row 3"],
        images(),
    ),
    Bad(
        "lengths",
        "run study.yaml data.name=bad.npz",
        3,
        ["80 train rows but 77 labels"],
        npz(y_train=feature_arrays()["y_train"][:-3]),
    ),
    Bad(
        "clients",
        "partition study.yaml partition.num_clients=1000",
        3,
        ["1000 clients x min_samples 2 = 2000 samples, but there are 80", "lower num_clients"],
    ),
    Bad(
        "min_samples",
        "partition study.yaml partition.min_samples=50",
        3,
        ["4 clients x min_samples 50 = 200 samples, but there are 80", "min_samples"],
    ),
    Bad("natural", "partition study.yaml partition.scheme=natural", 3, ["no client ids"]),
]

MODELS = [
    Bad("no_clip", "run digits.yaml models.clip=null", 2, ["models.clip is null", "tiny-clip"]),
    Bad("clip", "run digits.yaml models.clip=tiny-clpi", 4, ["'tiny-clpi'", "'tiny-clip'?"]),
    Bad("clip_tag", "run digits.yaml models.clip=ViT-B-32/opnai", 4, ["did you mean 'openai'?"]),
    Bad("clip_folder", "run digits.yaml models.clip=./clip", 4, ["./clip", "no such folder"]),
    Bad(
        "generator",
        "run digits.yaml method=cachefl models.generator=tiny-difusion",
        4,
        ["no generator 'tiny-difusion'", "did you mean 'tiny-diffusion'?"],
    ),
    Bad(
        "generator_folder",
        "run digits.yaml method=cachefl models.generator=./generator",
        4,
        ["no generator './generator': there is no such folder"],
    ),
    Bad(
        "generator_folder_without_pipeline",
        "run digits.yaml method=cachefl models.generator=mine",
        4,
        ["mine is no diffusers pipeline", "model_index.json"],
        lambda: Path("mine").mkdir(),
    ),
]

FOLDERS = [
    Bad("output", "run study.yaml output=study.yaml", 7, ["study.yaml/trial", "output=FOLDER"]),
    Bad("resume_nothing", "resume runs/trial", 7, ["no study in runs/trial", "no study has been"]),
    Bad("resume_a_file", "resume study.yaml", 7, ["no study in study.yaml; it is a file"]),
    Bad("report_nothing", "report runs/trial", 7, ["no study in runs/trial"]),
    Bad("report_any_folder", "report .", 7, ["no study in ."]),
    Bad("picture", "partition study.yaml --out split.bmp9", 2, ["--out split.bmp9", ".png"]),
    Bad("picture_place", "partition study.yaml --out study.yaml/a.png", 7, ["study.yaml/a.png"]),
    Bad("costs_nothing", "costs runs/trial", 7, ["no study in runs/trial"]),
    Bad("compare_nothing", "compare runs/a runs/b", 7, ["no study in runs/a", "no study has been"]),
]

PLACEMENT = [
    Bad(
        "no_gpu",
        "run study.yaml engine.backend=ray resources.gpus_per_client=0.5 --dry-run",
        5,
        ["resources.gpus_per_client is 0.5", "0 GPUs", "use 0 or auto"],
    ),
    Bad(
        "cpus",
        "run study.yaml engine.backend=ray resources.cpus_per_client=5000 --dry-run",
        5,
        ["no client actor fits", "5000 CPUs", "lower"],
    ),
]

TUNING = [
    Bad("no_grid", "sweep study.yaml --tune", 2, ["nothing to tune", "train.lr: [0.01, 0.1"]),
    Bad(
        "unequal",
        "sweep study.yaml --tune 'methods=[fedavg_head, zero_shot]' "
        "'tune={grid: {fedavg_head: {train.lr: [0.1, 1.0]}, zero_shot: {train.lr: [0.1]}}}'",
        2,
        ["tune.grid", "same number of trials", "fedavg_head 2, zero_shot 1"],
    ),
    Bad(
        "final_seeds",
        "sweep study.yaml --tune 'tune={seeds: [0, 7], grid: {fedavg_head: {train.lr: [0.1]}}}'",
        2,
        ["tune.seeds: 0 would be tuned on and reported", "tune.seeds=[1001]"],
    ),
    Bad(
        "early_stopping",
        "sweep study.yaml --tune 'tune={early_stopping: {grace_rounds: 2}, "
        "grid: {fedavg_head: {train.lr: [0.1, 1.0]}}}'",
        2,
        ["tune.early_stopping", "engine.backend is local", "to null"],
    ),
    Bad(
        "early_typo",
        "sweep study.yaml --tune 'tune={early_stopping: {grace_round: 2}}'",
        2,
        ["grace_round", "did you mean 'grace_rounds'?"],
    ),
    Bad(
        "tuned_method",
        "sweep study.yaml --tune 'tune={grid: {fedavg_haed: {train.lr: [0.1]}}}'",
        2,
        ["tune.grid.fedavg_haed", "did you mean 'fedavg_head'?"],
    ),
]

USAGE = [
    Bad("command", "swep study.yaml", 2, ["no such command 'swep'", "'sweep'?", "fedsim --help"]),
    Bad("argument", "run", 2, ["missing argument", "STUDY.yaml", "`fedsim run --help`"]),
    Bad("compare", "compare", 2, ["missing argument", "FOLDER", "`fedsim compare --help`"]),
    Bad("option", "run study.yaml --dry", 2, ["no such option: --dry", "--dry-run"]),
]

ALL = {
    "study_file": STUDY_FILES,
    "setting": SETTINGS,
    "method": METHODS,
    "data": DATA,
    "model": MODELS,
    "folder": FOLDERS,
    "placement": PLACEMENT,
    "tuning": TUNING,
    "usage": USAGE,
}


def refuse(fedsim: Fedsim, place: Path, bad: Bad) -> str:
    """The message of a command that is refused and leaves nothing behind."""
    bad.make()
    before = contents(place)
    code, out, err = fedsim(*bad.words)
    assert err.startswith("fedsim: "), err
    assert code == bad.code, err
    assert "Traceback" not in out + err
    assert len(err.splitlines()) == 1, f"one message, one line:\n{err}"
    assert contents(place) == before, "something was written"
    for earlier, later in zip(["", *bad.says], bad.says, strict=False):
        assert err.find(later) >= max(0, err.find(earlier)), f"{later!r} is missing in:\n{err}"
    # Nothing of pydantic's, Python's or click's wording gets through.
    assert not re.search(r"Input should|constrained|literal\[|\bNone\b|Usage:|object at 0x", err)
    return err


@pytest.mark.parametrize(
    "bad", [pytest.param(b, id=f"{kind}-{b.name}") for kind, bads in ALL.items() for b in bads]
)
def test_it_is_refused_in_one_line(fedsim: Fedsim, place: Path, bad: Bad):
    refuse(fedsim, place, bad)


@pytest.mark.parametrize(("setting", "meant"), CHOICES)
def test_choices_get_a_hint(fedsim: Fedsim, place: Path, setting: str, meant: str):
    key = setting.partition("=")[0]
    says = [f"unknown {key} ", f"did you mean {meant!r}?"]
    refuse(fedsim, place, Bad("", f"run study.yaml {setting}", 2, says))


def test_a_choice_without_a_near_name_lists_all(fedsim: Fedsim, place: Path):
    says = ["unknown train.optimizer 'lbfgs'; known: adamw, sgd"]
    refuse(fedsim, place, Bad("", "run study.yaml train.optimizer=lbfgs", 2, says))


def test_all_problems_are_told_at_once(fedsim: Fedsim, place: Path):
    before = contents(place)
    words = ["train.lr=-1", "train.rounds=x", "cache.init=t", "method=nosuch", "seed=-1"]
    code, _, err = fedsim("run", "study.yaml", *words)
    assert code == 2
    assert err.startswith("fedsim: 5 problems in the configuration:\n  - study.yaml: ")
    assert len(err.splitlines()) == 6
    assert contents(place) == before


def test_several_methods_with_problems_are_told_at_once(fedsim: Fedsim, place: Path):
    """What only torch can find out is collected, too, and leaves no folder."""
    Path("mine.py").write_text("raise ValueError('not yet')")
    methods = "methods={fedavg_head: {options.a: 1}, fedavg_finetune: {}, mine: {use: mine.py}}"
    code, _, err = fedsim("sweep", "study.yaml", methods)
    assert code == 2
    assert err.startswith("fedsim: 3 problems")
    for part in ("has no options", "trains on images", "ValueError: not yet"):
        assert part in err
    assert not Path("runs").exists()


def test_of_several_cells_the_message_chooses_one_that_works(fedsim: Fedsim, place: Path):
    several = (
        "run study.yaml 'methods=[zero_shot, fedavg_head]' 'seeds=[3, 4]' "
        "'partitions=[{scheme: pathological, classes_per_client: 2}, {scheme: iid}]' "
        "'grid.train.momentum=[0.5, 0.0]'"
    )
    says = ["16 runs", "fedsim sweep", "for example: "]
    err = refuse(fedsim, place, Bad("", several, 2, says))
    example = shlex.split(err.partition("for example: ")[2])
    assert example[:2] == ["method=zero_shot", "seed=3"]
    code, _, err = fedsim(*shlex.split(several), *example, "--dry-run")
    assert code == 0, err


def test_an_output_that_another_process_works_on(fedsim: Fedsim, place: Path):
    with study_lock(Path("runs/trial")):
        says = ["another process is working on runs/trial", "output=FOLDER"]
        refuse(fedsim, place, Bad("", "run study.yaml", 7, says))
    assert not Path("runs").exists()


# --- a study that exists -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one run that was killed after its first round."""
    place = tmp_path_factory.mktemp("half_way")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_study(place)
        codes: list[int] = []
        main(["run", "study.yaml"], leave=codes.append)
        assert codes == [0]
    folder = place / "runs" / "trial"
    (run_id,) = load(folder).runs.run_id
    writer = TableWriter(folder, run_id)
    writer.truncate(1)
    writer.update_run(status="running")
    writer.commit()
    (folder / "checkpoints" / run_id / "round-000002.pt").unlink()
    return place


@pytest.fixture
def begun(half_way: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of a copy of it, in the current folder."""
    shutil.copytree(half_way, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/trial")


def test_a_study_is_found_by_a_near_name(fedsim: Fedsim, tmp_path: Path, begun: Path):
    for margin in ("much", "-1", "nan", "100"):
        refuse(fedsim, tmp_path, Bad("", f"compare runs/trial --margin={margin}", 2, ["points"]))
    refuse(fedsim, tmp_path, Bad("", "report runs/trial --csv=runs", 7, ["--csv runs is a folder"]))
    for option in ("method", "partition"):
        says = [f"no {option} 'x' in the study"]
        refuse(fedsim, tmp_path, Bad("", f"compare runs/trial --{option}=x", 7, says))
    for command in ("resume", "report", "compare runs/trial"):
        says = ["no study in runs/trail", "did you mean 'trial'?"]
        refuse(fedsim, tmp_path, Bad("", f"{command} runs/trail", 7, says))
        says = ["no study in runs; ", "runs/trial"]
        refuse(fedsim, tmp_path, Bad("", f"{command} runs", 7, says))


def test_a_damaged_checkpoint(fedsim: Fedsim, tmp_path: Path, begun: Path):
    (newest,) = begun.glob("checkpoints/*/round-000001.pt")
    whole = newest.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"nonsense"):
        newest.write_bytes(damage)
        code, _, err = fedsim("resume", begun)
        assert code == 7, err
        last = err.splitlines()[-1]
        assert last.startswith(f"fedsim: checkpoint {newest} cannot be read")
        assert "delete it to resume from the one before" in last
        assert "Traceback" not in err
    newest.unlink()
    assert fedsim("resume", begun).code == 0


def test_a_checkpoint_of_another_run(fedsim: Fedsim, tmp_path: Path, begun: Path):
    (newest,) = begun.glob("checkpoints/*/round-000001.pt")
    content = torch.load(newest, weights_only=True)
    torch.save(content | {"run_id": "another"}, newest)
    code, _, err = fedsim("resume", begun)
    assert code == 7
    assert "belongs to run 'another'" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_settings_that_changed_since(fedsim: Fedsim, tmp_path: Path, begun: Path):
    plan = begun / "plan.json"
    text = plan.read_text()
    plan.write_text(text.replace('"threads": 1', '"threads": 2'))
    says = ["runs/trial cannot be resumed", "engine.threads was 1 and is 2", "undo the change"]
    refuse(fedsim, tmp_path, Bad("", f"resume {begun}", 7, says))
    plan.write_text(text)
    assert fedsim("resume", begun).code == 0


def test_a_method_file_that_changed_since(fedsim: Fedsim, place: Path):
    text = "from fedsim.methods.zero_shot import ZeroShot\nclass Mine(ZeroShot): pass\n"
    Path("mine.py").write_text(text)
    study = load_study("study.yaml", ["methods.fedavg_head.use=mine.py"])
    folder, (planned,) = study.folder, study.experiments(METHODS_KNOWN)
    folder.mkdir(parents=True)
    write_plan(folder, [planned])
    first = planned.run_id
    Path("mine.py").write_text(text + "# a remark\n")
    refuse(fedsim, place, Bad("", f"resume {folder}", 7, ["mine.py was edited", "anew"]))
    Path("mine.py").unlink()
    refuse(fedsim, place, Bad("", f"resume {folder}", 7, ["mine.py is not there"]))
    # What was finished, or started anew since, stands in nobody's way.
    Path("mine.py").write_text(text + "# a remark\n")
    (again,) = study.experiments(METHODS_KNOWN)
    assert again.run_id != first
    write_plan(folder, [again])
    assert [e.run_id for e in read_plan(folder)] == [again.run_id]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 3}', '{"a": {"study": "s"}}', "null"])
def test_a_damaged_plan(fedsim: Fedsim, tmp_path: Path, begun: Path, damage: str):
    (begun / "plan.json").write_text(damage)
    says = ["runs/trial/plan.json cannot be read", "start the study's file again"]
    refuse(fedsim, tmp_path, Bad("", f"resume {begun}", 7, says))


def test_a_refused_start_leaves_a_study_as_it_was(fedsim: Fedsim, tmp_path: Path, begun: Path):
    for bad in (METHODS[1], METHODS[6], DATA[0], SETTINGS[8], FOLDERS[5]):
        refuse(fedsim, tmp_path, bad)


@pytest.mark.ray
def test_a_placement_that_ray_cannot_hold(fedsim: Fedsim, place: Path):
    command = "sweep study.yaml seeds=[0,1] engine.backend=ray resources.gpus_per_client=0.5"
    code, _, err = fedsim(*command.split())
    assert code == 5
    assert err.startswith("fedsim: resources.gpus_per_client is 0.5")
    assert "Traceback" not in err
    assert not Path("runs").exists()
