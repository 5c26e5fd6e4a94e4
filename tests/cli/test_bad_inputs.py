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
from fedsim.config.study_file import load_study
from fedsim.driver.plan import read_plan, study_lock, write_plan
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
        says: What the message holds, in this order, with ` ... ` between the parts.
        code: Exit code.
        make: Makes the files that the command reads.
        begun: Whether the study has been started before, and killed after a round.
    """

    name: str
    command: str
    says: str
    code: int
    make: Callable[[], object] = lambda: None
    begun: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command)


def study(text: str) -> Callable[[], object]:
    """Writes the file that the command is about."""
    return lambda: Path("bad.yaml").write_text(text)


def method_file(name: str, text: str) -> Callable[[], object]:
    return lambda: Path(name).write_text(text)


def plan(text: str) -> Callable[[], object]:
    """Damages the plan of the study that was started."""
    return lambda: Path("runs/trial/plan.json").write_text(text)


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

# fmt: off
REFUSED = [
    Bad("study_file-file_missing", "run stduy.yaml", "'stduy.yaml' ... did you mean 'study.yaml'",
        2),
    Bad("study_file-folder_missing", "run nowhere/study.yaml", "there is no folder 'nowhere'", 2),
    Bad("study_file-folder", "run .", "'.' is a folder ... digits.yaml, study.yaml", 2),
    Bad("study_file-no_yaml", "sweep bad.yaml",
        "bad.yaml is not valid YAML ... expected ',' or ']' ... line 2, column 8", 2,
        study('seeds: [0, 1\nmethods: {}')),
    Bad("study_file-tabs", "sweep bad.yaml", "spaces, not tabs (line 2", 2,
        study('train:\n\tlr: 1')),
    Bad("study_file-key_twice", "sweep bad.yaml", "the key 'train' is given twice ... line 8", 2,
        study(STUDY + 'train: {lr: 1.0}')),
    Bad("study_file-no_mapping", "sweep bad.yaml", "holds ['a', 'b'] ... mapping", 2,
        study('[a, b]')),
    Bad("study_file-empty", "partition bad.yaml", "bad.yaml is empty ... methods:", 2, study("")),
    Bad("study_file-binary", "run features.npz", "features.npz is not text in UTF-8", 2),
    Bad("setting-section", "run study.yaml trian.lr=1", "unknown setting 'trian' ... 'train'?", 2),
    Bad("setting-key", "run study.yaml train.momentun=0.9", "'train.momentun' ... 'momentum'?", 2),
    Bad("setting-elsewhere", "run study.yaml lr=1", "unknown setting 'lr' ... 'train.lr'", 2),
    Bad("setting-other_section", "run study.yaml train.num_clients=3",
        "'train.num_clients' ... 'partition.num_clients'?", 2),
    Bad("setting-key_of_a_method", "run bad.yaml",
        "bad.yaml: methods.mine: unknown setting 'cache.sharpnes'; did you mean 'sharpness'?", 2,
        study(STUDY.replace('{fedavg_head: {}}', '{mine: {use: cachefl, cache.sharpnes: 1.0}}'))),
    Bad("setting-fraction", "run study.yaml train.rounds=1.5",
        "train.rounds is 1.5:  ... whole number", 2),
    Bad("setting-word", "run study.yaml train.lr=fast", "train.lr is 'fast':  ... a number", 2),
    Bad("setting-null", "run study.yaml train.lr=null", "train.lr is empty (null):  ... a number",
        2),
    Bad("setting-negative_lr", "run study.yaml train.lr=-1", "train.lr is -1: it must be above 0",
        2),
    Bad("setting-nan", "run study.yaml train.lr=.nan", "train.lr is nan:  ... finite", 2),
    Bad("setting-alpha_0", "run study.yaml partition.dirichlet_alpha=0", "dirichlet_alpha is 0: ",
        2),
    Bad("setting-alpha_of_the_second_partition", "sweep bad.yaml",
        "partitions.1: partition.dirichlet_alpha is -0.5: it must be above 0", 2,
        study(STUDY + 'partitions: [{scheme: iid}, {dirichlet_alpha: -0.5}]')),
    Bad("setting-alpha_missing", "partition study.yaml partition.dirichlet_alpha=null",
        "partition:  ... 'dirichlet_label' needs partition.dirichlet_alpha", 2),
    Bad("setting-classes_missing", "partition study.yaml partition.scheme=pathological",
        "'pathological' needs partition.classes_per_client", 2),
    Bad("setting-participation_0", "run study.yaml train.participation=0", "is 0:  ... above 0", 2),
    Bad("setting-participation_2", "run study.yaml train.participation=2", "is 2:  ... at most 1",
        2),
    Bad("setting-gpus_1.5", "run study.yaml resources.gpus_per_client=1.5",
        "gpus_per_client is 1.5 ... a fraction up to 1, or a whole number", 2),
    Bad("setting-auto_or_number", "run study.yaml engine.group_size=big",
        "study.yaml: engine.group_size is 'big': it must be a whole number or 'auto'", 2),
    Bad("setting-holdout_0_and_tune",
        "sweep study.yaml --tune evaluation.holdout_fraction=0 'tune={grid: {fedavg_head: "
        "{train.lr: [0.1, 1.0]}}}'", "held-out client data ... holdout_fraction", 2),
    Bad("setting-reference", "sweep study.yaml report.reference_method=fedavg_haed",
        "report.reference_method ... 'fedavg_haed' ... did you mean 'fedavg_head'?", 2),
    Bad("setting-no_override", "run study.yaml train.lr", "'train.lr' must look like train.lr=0.1",
        2),
    Bad("setting-broken_override", "run study.yaml seeds=[0", "'seeds=[0' ... not valid YAML", 2),
    Bad("setting-seed", "run study.yaml seed=one", "seeds.0 is 'one' ... whole number", 2),
    Bad("setting-no_seeds", "run study.yaml seeds=[]", "seeds is empty: give at least one", 2),
    Bad("setting-same_twice", "sweep study.yaml seeds=[1,1]",
        "the same run is given twice ... seeds", 2),
    Bad("setting-backends", "sweep bad.yaml", "engine.backend:  ... the same, ray or local", 2,
        study(STUDY.replace("{fedavg_head: {}}",
                            "{fedavg_head: , zero_shot: {engine.backend: ray}}"))),
    Bad("choice-partition.scheme", "run study.yaml partition.scheme=dirichlet_lable",
        "unknown partition.scheme  ... did you mean 'dirichlet_label'?", 2),
    Bad("choice-train.optimizer", "run study.yaml train.optimizer=adam",
        "unknown train.optimizer  ... did you mean 'adamw'?", 2),
    Bad("choice-failures.policy", "run study.yaml failures.policy=retyr",
        "unknown failures.policy  ... did you mean 'retry'?", 2),
    Bad("choice-cache.init", "run study.yaml cache.init=publicshots",
        "unknown cache.init  ... did you mean 'public_shots'?", 2),
    Bad("choice-engine.backend", "run study.yaml engine.backend=lcoal",
        "unknown engine.backend  ... did you mean 'local'?", 2),
    Bad("choice-without_a_near_name", "run study.yaml train.optimizer=lbfgs",
        "unknown train.optimizer 'lbfgs'; known: adamw, sgd", 2),
    Bad("method-method", "run study.yaml method=fedavg_haed",
        "fedavg_haed ... did you mean 'fedavg_h", 2),
    Bad("method-option",
        f'run study.yaml {CLIP} method=synthetic_only methods.synthetic_only.options.modle=head',
        "methods.synthetic_only.options: unknown setting 'modle'; did you mean 'model'?", 2),
    Bad("method-option_of_none", "run study.yaml methods.fedavg_head.options.depth=2",
        "methods.fedavg_head.options: fedavg_head has no options", 2),
    Bad("method-no_file", "run study.yaml methods.fedavg_head.use=mien.py",
        "methods.fedavg_head: no file 'mien.py' ... did you mean 'mine.py'?", 2,
        method_file('mine.py', '')),
    Bad("method-file_without_method", "run study.yaml methods.fedavg_head.use=mine.py",
        "mine.py holds no method ... subclass of fedsim.methods.base.Method", 2,
        method_file('mine.py', 'class Mine: pass')),
    Bad("method-file_fails", "run study.yaml methods.fedavg_head.use=mine.py",
        "mine.py fails to import: ModuleNotFoundError: No module named 'nosuch_'", 2,
        method_file('mine.py', 'import nosuch_')),
    Bad("method-images_wanted", "run study.yaml method=fedavg_finetune",
        "'fedavg_finetune' trains on images ... 'features.npz' holds precomputed features", 2),
    Bad("method-generated_without_models", "run study.yaml method=cachefl",
        "methods.cachefl: a generated set needs models.clip ... cache.init: text", 2),
    Bad("method-generated_beside_other_features", f'run study.yaml method=cachefl {CLIP}',
        "features have 8 numbers ... models.clip 'tiny-clip' makes 64 ... cache.init: text", 2),
    Bad("method-no_text", "run study.yaml data.name=bad.npz",
        "'bad.npz' come without text features ... add text_features", 2, npz(text_features=None)),
    Bad("data-no_data", "run study.yaml data.name=feature.npz", "did you mean 'features.npz'?", 3),
    Bad("data-no_built_in", "run study.yaml data.name=digit", "digit:  ... did you mean 'digits'?",
        3),
    Bad("data-no_npz", "run study.yaml data.name=study.yaml", "not a .npz file or a folder", 3),
    Bad("data-column", "partition study.yaml data.label_column=targets",
        "label_column is 'targets' ... no 'targets_train' ... y_train", 3),
    Bad("data-truncated", "run study.yaml data.name=bad.npz", "truncated ... copy it", 3,
        truncated),
    Bad("data-pickled", "run study.yaml data.name=bad.npz",
        "bad.npz: 'y_train' is a pickled object array ... plain dtype", 3,
        npz(y_train=np.array([{'label': 1}] * 80, dtype=object))),
    Bad("data-nan_features", "run study.yaml data.name=bad.npz",
        "1 of 80 rows hold NaN ... the first is row 3 ... drop or repair", 3,
        npz(x_train=NOT_A_NUMBER)),
    Bad("data-nan_images", "run digits.yaml data.name=bad.npz",
        "bad.npz: x ... 1 of 60 rows hold NaN ... the first is row 3", 3, images()),
    Bad("data-lengths", "run study.yaml data.name=bad.npz", "80 train rows but 77 labels", 3,
        npz(y_train=feature_arrays()['y_train'][:-3])),
    Bad("data-clients", "partition study.yaml partition.num_clients=1000",
        "1000 clients x min_samples 2 = 2000 samples, but there are 80 ... lower num_clients", 3),
    Bad("data-min_samples", "partition study.yaml partition.min_samples=50",
        "4 clients x min_samples 50 = 200 samples, but there are 80 ... min_samples", 3),
    Bad("data-natural", "partition study.yaml partition.scheme=natural", "no client ids", 3),
    Bad("model-no_clip", "run digits.yaml models.clip=null", "models.clip is null ... tiny-clip",
        2),
    Bad("model-clip", "run digits.yaml models.clip=tiny-clpi", "'tiny-clpi' ... 'tiny-clip'?", 4),
    Bad("model-clip_tag", "run digits.yaml models.clip=ViT-B-32/opnai", "did you mean 'openai'?",
        4),
    Bad("model-clip_folder", "run digits.yaml models.clip=./clip", "./clip ... no such folder", 4),
    Bad("model-generator", "run digits.yaml method=cachefl models.generator=tiny-difusion",
        "no generator 'tiny-difusion' ... did you mean 'tiny-diffusion'?", 4),
    Bad("model-generator_folder", "run digits.yaml method=cachefl models.generator=./generator",
        "no generator './generator': there is no such folder", 4),
    Bad("model-generator_folder_without_pipeline",
        "run digits.yaml method=cachefl models.generator=mine",
        "mine is no diffusers pipeline ... model_index.json", 4, lambda: Path('mine').mkdir()),
    Bad("folder-output", "run study.yaml output=study.yaml", "study.yaml/trial ... output=FOLDER",
        7),
    Bad("folder-resume_nothing", "resume runs/trial",
        "no study in runs/trial ... no study has been", 7),
    Bad("folder-resume_a_file", "resume study.yaml", "no study in study.yaml; it is a file", 7),
    Bad("folder-report_nothing", "report runs/trial", "no study in runs/trial", 7),
    Bad("folder-report_any_folder", "report .", "no study in .", 7),
    Bad("folder-picture", "partition study.yaml --out split.bmp9", "--out split.bmp9 ... .png", 2),
    Bad("folder-picture_place", "partition study.yaml --out study.yaml/a.png", "study.yaml/a.png",
        7),
    Bad("folder-costs_nothing", "costs runs/trial", "no study in runs/trial", 7),
    Bad("folder-compare_nothing", "compare runs/a runs/b",
        "no study in runs/a ... no study has been", 7),
    Bad("placement-no_gpu",
        "run study.yaml engine.backend=ray resources.gpus_per_client=0.5 --dry-run",
        "resources.gpus_per_client is 0.5 ... 0 GPUs ... use 0 or auto", 5),
    Bad("placement-cpus",
        "run study.yaml engine.backend=ray resources.cpus_per_client=5000 --dry-run",
        "no client actor fits ... 5000 CPUs ... lower", 5),
    Bad("tuning-no_grid", "sweep study.yaml --tune", "nothing to tune ... train.lr: [0.01, 0.1", 2),
    Bad("tuning-unequal",
        "sweep study.yaml --tune 'methods=[fedavg_head, zero_shot]' 'tune={grid: {fedavg_head: "
        "{train.lr: [0.1, 1.0]}, zero_shot: {train.lr: [0.1]}}}'",
        "tune.grid ... same number of trials ... fedavg_head 2, zero_shot 1", 2),
    Bad("tuning-final_seeds",
        "sweep study.yaml --tune 'tune={seeds: [0, 7], grid: {fedavg_head: {train.lr: [0.1]}}}'",
        "tune.seeds: 0 would be tuned on and reported ... tune.seeds=[1001]", 2),
    Bad("tuning-early_stopping",
        "sweep study.yaml --tune 'tune={early_stopping: {grace_rounds: 2}, grid: {fedavg_head: "
        "{train.lr: [0.1, 1.0]}}}'", "tune.early_stopping ... engine.backend is local ... to null",
        2),
    Bad("tuning-early_typo", "sweep study.yaml --tune 'tune={early_stopping: {grace_round: 2}}'",
        "grace_round ... did you mean 'grace_rounds'?", 2),
    Bad("tuning-tuned_method",
        "sweep study.yaml --tune 'tune={grid: {fedavg_haed: {train.lr: [0.1]}}}'",
        "tune.grid.fedavg_haed ... did you mean 'fedavg_head'?", 2),
    Bad("usage-command", "swep study.yaml", "no such command 'swep' ... 'sweep'? ... fedsim --help",
        2),
    Bad("usage-argument", "run", "missing argument ... STUDY.yaml ... `fedsim run --help`", 2),
    Bad("usage-compare", "compare", "missing argument ... FOLDER ... `fedsim compare --help`", 2),
    Bad("usage-option", "run study.yaml --dry", "no such option: --dry ... --dry-run", 2),
    Bad("begun-margin_much", "compare runs/trial --margin=much", "points", 2, begun=True),
    Bad("begun-margin_-1", "compare runs/trial --margin=-1", "points", 2, begun=True),
    Bad("begun-margin_nan", "compare runs/trial --margin=nan", "points", 2, begun=True),
    Bad("begun-margin_100", "compare runs/trial --margin=100", "points", 2, begun=True),
    Bad("begun-csv", "report runs/trial --csv=runs", "--csv runs is a folder", 7, begun=True),
    Bad("begun-method", "compare runs/trial --method=x", "no method 'x' in the study", 7,
        begun=True),
    Bad("begun-partition", "compare runs/trial --partition=x", "no partition 'x' in the study", 7,
        begun=True),
    Bad("begun-resume_near", "resume runs/trail",
        "no study in runs/trail ... did you mean 'trial'?", 7, begun=True),
    Bad("begun-resume_above", "resume runs", "no study in runs;  ... runs/trial", 7, begun=True),
    Bad("begun-report_near", "report runs/trail",
        "no study in runs/trail ... did you mean 'trial'?", 7, begun=True),
    Bad("begun-report_above", "report runs", "no study in runs;  ... runs/trial", 7, begun=True),
    Bad("begun-compare_near", "compare runs/trial runs/trail",
        "no study in runs/trail ... did you mean 'trial'?", 7, begun=True),
    Bad("begun-compare_above", "compare runs/trial runs", "no study in runs;  ... runs/trial", 7,
        begun=True),
    Bad("begun-plan_empty", "resume runs/trial",
        "runs/trial/plan.json cannot be read ... start the study's file again", 7, plan(''), True),
    Bad("begun-plan_half", "resume runs/trial",
        "runs/trial/plan.json cannot be read ... start the study's file again", 7, plan('{'), True),
    Bad("begun-plan_list", "resume runs/trial",
        "runs/trial/plan.json cannot be read ... start the study's file again", 7, plan('[]'),
        True),
    Bad("begun-plan_number", "resume runs/trial",
        "runs/trial/plan.json cannot be read ... start the study's file again", 7, plan('{"a": 3}'),
        True),
    Bad("begun-plan_study", "resume runs/trial",
        "runs/trial/plan.json cannot be read ... start the study's file again", 7,
        plan('{"a": {"study": "s"}}'), True),
    Bad("begun-plan_null", "resume runs/trial",
        "runs/trial/plan.json cannot be read ... start the study's file again", 7, plan('null'),
        True),
]
# fmt: on


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
    at = 0
    for part in bad.says.split(" ... "):
        assert (at := err.find(part, at)) >= 0, f"{part!r} is missing in:\n{err}"
    # Nothing of pydantic's, Python's or click's wording gets through.
    assert not re.search(r"Input should|constrained|literal\[|\bNone\b|Usage:|object at 0x", err)
    return err


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.name) for bad in REFUSED])
def test_it_is_refused_in_one_line(
    fedsim: Fedsim,
    place: Path,
    bad: Bad,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
):
    if bad.begun:
        request.getfixturevalue("begun")
        capsys.readouterr()  # the first of these tests runs the study
    refuse(fedsim, place, bad)


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
    err = refuse(fedsim, place, Bad("", several, "16 runs ... fedsim sweep ... for example: ", 2))
    example = shlex.split(err.partition("for example: ")[2])
    assert example[:2] == ["method=zero_shot", "seed=3"]
    code, _, err = fedsim(*shlex.split(several), *example, "--dry-run")
    assert code == 0, err


def test_an_output_that_another_process_works_on(fedsim: Fedsim, place: Path):
    with study_lock(Path("runs/trial")):
        says = "another process is working on runs/trial ... output=FOLDER"
        refuse(fedsim, place, Bad("", "run study.yaml", says, 7))
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
    says = "runs/trial cannot be resumed ... engine.threads was 1 and is 2 ... undo the change"
    refuse(fedsim, tmp_path, Bad("", f"resume {begun}", says, 7))
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
    refuse(fedsim, place, Bad("", f"resume {folder}", "mine.py was edited ... anew", 7))
    Path("mine.py").unlink()
    refuse(fedsim, place, Bad("", f"resume {folder}", "mine.py is not there", 7))
    # What was finished, or started anew since, stands in nobody's way.
    Path("mine.py").write_text(text + "# a remark\n")
    (again,) = study.experiments(METHODS_KNOWN)
    assert again.run_id != first
    write_plan(folder, [again])
    assert [e.run_id for e in read_plan(folder)] == [again.run_id]


def test_a_refused_start_leaves_a_study_as_it_was(fedsim: Fedsim, tmp_path: Path, begun: Path):
    early = ("method-option", "method-images_wanted", "data-no_data", "setting-negative_lr")
    for bad in (bad for bad in REFUSED if bad.name in (*early, "folder-picture")):
        refuse(fedsim, tmp_path, bad)


@pytest.mark.ray
def test_a_placement_that_ray_cannot_hold(fedsim: Fedsim, place: Path):
    command = "sweep study.yaml seeds=[0,1] engine.backend=ray resources.gpus_per_client=0.5"
    code, _, err = fedsim(*command.split())
    assert code == 5
    assert err.startswith("fedsim: resources.gpus_per_client is 0.5")
    assert "Traceback" not in err
    assert not Path("runs").exists()
