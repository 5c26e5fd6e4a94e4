"""Methods that train on images at their own size: no encoder, the data's shape, shared arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedsim
from fedsim.config import Experiment, MethodConfig
from fedsim.data.datasets import read_dataset
from fedsim.driver.traffic import traffic
from fedsim.engine.local import LocalPool
from fedsim.errors import ConfigError, DataError
from fedsim.inputs.preflight import preflight
from fedsim.inputs.prepare import prepare
from fedsim.inputs.run_inputs import RunInputs
from fedsim.inputs.task import make_task
from fedsim.methods import method_class
from fedsim.methods.base import Method, Predictor, State
from fedsim.methods.fedavg import FedAvg
from fedsim.models.clip import PRETRAINED
from tests.helpers import experiment, federation, run, write_features

CPU = torch.device("cpu")
NET = {"name": "convnet", "width": 4}
GENERATOR = pytest.mark.skipif(
    not (PRETRAINED / "tiny-diffusion" / "model_index.json").is_file(),
    reason="the shipped generator is not there",
)


class FromSynthetic(FedAvg):
    """Needs the generated set."""

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return True


class Larger(FedAvg):
    """Holds a second model, which always says class 0, and a third of the main one's logits."""

    name = "always_zero"

    def predictors(self, state: State) -> dict[str, Predictor]:
        def always_zero(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()

        return {self.name: always_zero, "third": lambda x: self.net(state, x) / 3}


class Misnamed(Larger):
    name = "global"


def on_digits(use: str | type[Method] = "fedavg", data: str = "digits", **own: Any) -> Experiment:
    given: dict[str, Any] = {"models__classifier": NET, "train__lr": 0.1, "train__rounds": 1}
    if not isinstance(use, str):
        own = {"use": f"{__file__}:{use.__name__}"} | own
        use = use.__name__.lower()
    if data == "digits":
        given["data__max_train_samples"] = 60
    return experiment(data, use, **(given | own))


def prepared(config: Experiment, synthetic: bool = True) -> RunInputs:
    return prepare(config, method_class(config.use), CPU, synthetic=synthetic)


def test_images_keep_their_size_and_channels():
    config = on_digits()
    data, images = prepared(config), read_dataset(config.data, 0).train.images
    inputs = data.arrays["train_inputs"]
    assert inputs.dtype == np.uint8
    assert np.array_equal(inputs[:, 0], images)
    assert isinstance(inputs, np.memmap), "mapped: all processes of a node share it"
    task = make_task(config.for_method(), data, method_class(config.use), CPU, server=False)
    assert task.image_shape == (1, 8, 8)
    assert (task.embed_dim, task.text_features, task.load_clip) == (0, None, None)
    torch.testing.assert_close(
        task.prepare(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([-1, -0.6, 1])
    )


def test_an_encoder_is_there_for_those_who_ask():
    config = on_digits(models__clip="tiny-clip")
    data = prepared(config)
    assert data.arrays["train_inputs"].shape == (60, 1, 8, 8)
    task = make_task(config.for_method(), data, method_class(config.use), CPU, server=True)
    assert task.load_clip is not None
    assert task.text_features is not None
    assert task.text_features.shape == (10, task.embed_dim)
    assert data.frozen_bytes(FedAvg) == 0, "clients do not download it"


def test_colour_images_of_files(tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = rng.integers(0, 256, (20 + number % 2, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError, match="image_size"):
        prepared(on_digits(data=str(tmp_path)))
    sized = on_digits(data=str(tmp_path), data__image_size=12, partition__num_clients=2)
    found = prepared(sized).arrays["train_inputs"]
    assert found.shape[1:] == (3, 12, 12)
    images = read_dataset(sized.data, 0).train.load_images()
    assert np.array_equal(found, images.transpose(0, 3, 1, 2))


def test_splits_of_different_sizes_are_refused(tmp_path: Path):
    rng = np.random.default_rng(0)
    for split, side in (("train", 16), ("test", 8)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    with pytest.raises(DataError, match=r"test split has images of 3x8x8.*3x16x16.*image_size"):
        prepared(on_digits(data=str(tmp_path)))


def test_features_are_refused(tmp_path: Path):
    config = on_digits(data=str(write_features(tmp_path)))
    with pytest.raises(ConfigError, match="'fedavg' trains on images, but .* precomputed features"):
        preflight([config])


def test_methods_of_an_encoder_still_need_it():
    with pytest.raises(ConfigError, match=r"'zero_shot' works with a frozen encoder"):
        preflight([experiment("digits", "zero_shot")])


def test_what_a_run_would_send_and_what_it_sends(tmp_path: Path):
    config = on_digits(train__rounds=2, train__lr=0.3)
    preflight([config])
    study, sent = fedsim.load(run(config, tmp_path)), traffic(config)
    rounds = study.rounds.set_index("round")
    assert sent.up == sent.down == 4 * 410  # floats of all weights
    assert sent.once == 0
    assert rounds["bytes_up"].sum() == 2 * 6 * sent.up
    assert rounds["bytes_down"].sum() == 2 * 6 * sent.down
    assert rounds["loss"].is_monotonic_decreasing
    clients = study.clients.query("round > 0")
    assert (clients["loss_after"] < clients["loss_before"]).all()
    assert (clients["train_flops"] > 0).all()


# --- the server's generated images ---------------------------------------------------------------


@GENERATOR
@pytest.mark.parametrize("clip", [None, "tiny-clip"])
def test_generated_images_are_like_the_datas(tmp_path: Path, clip: str | None):
    given = {"models__generator": "tiny-diffusion", "cache__images_per_class": 2}
    config = on_digits(FromSynthetic, models__clip=clip, **given)
    preflight([config])
    data = prepared(config)
    task = make_task(config.for_method(), data, method_class(config.use), CPU, server=True)
    assert task.synthetic is not None
    assert task.synthetic.inputs.dtype == torch.uint8
    assert task.synthetic.inputs.shape == (20, 1, 8, 8)
    assert task.synthetic.labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert task.prepare(task.synthetic.inputs).abs().max() <= 1
    assert prepared(config, synthetic=False).synthetic == {}
    study = fedsim.load(run(config, tmp_path))
    assert study.synthetic["num_images"].tolist() == [2] * 10 + [20]
    measured = study.synthetic["drawn_agreement"].notna()
    assert measured.all() if clip else not measured.any()


@GENERATOR
def test_the_pictures_do_not_depend_on_the_encoder():
    given = {"models__generator": "tiny-diffusion", "cache__images_per_class": 2}
    found = [
        prepared(on_digits(FromSynthetic, models__clip=clip, **given)).synthetic["fitted"]
        for clip in (None, "tiny-clip")
    ]
    assert np.array_equal(*found)


def test_images_from_elsewhere_need_no_encoder(tmp_path: Path):
    names, rng = read_dataset(on_digits().data, 0).classnames, np.random.default_rng(0)
    for name in names:
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (10 + 2 * number, 14, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    given = {"models__generator": str(tmp_path), "cache__images_per_class": 2}
    made = prepared(on_digits(FromSynthetic, **given)).synthetic
    assert made["images"].shape == (20, 10, 10, 3), "as large as the smallest"
    assert made["fitted"].shape == (20, 1, 8, 8)


def test_what_cannot_be_generated_is_refused():
    nothing = on_digits(FromSynthetic)
    judged = on_digits(
        FromSynthetic, models__generator="tiny-diffusion", synthetic__filter="agreement"
    )
    with pytest.raises(ConfigError) as caught:
        preflight([nothing, judged])
    assert "needs models.generator" in caught.value.problems[0]
    assert "lets models.clip judge" in caught.value.problems[1]


# --- more models on the server -------------------------------------------------------------------


def test_more_models_are_evaluated_under_their_names(tmp_path: Path):
    config = on_digits(Larger)
    study = fedsim.load(run(config, tmp_path))
    rows = study.evaluations.query("split == 'test'")
    whole = rows.query("scope == 'global' and metric == 'accuracy'").set_index(["model", "round"])
    data = prepared(config)
    share = float((np.asarray(data.arrays["test_labels"]) == 0).mean())
    assert whole["value"]["always_zero"].tolist() == pytest.approx([share, share])
    assert whole["value"]["third"].tolist() == whole["value"]["global"].tolist()
    assert study.rounds["accuracy"].tolist() == whole["value"]["global"].tolist()
    loss = rows.query("scope == 'global' and metric == 'nll'").set_index(["model", "round"])
    assert loss["value"]["third"][1] != loss["value"]["global"][1]
    of_class = rows.query("scope == 'class' and model == 'always_zero'").set_index("class_name")
    assert of_class["value"].to_dict() == {n: float(n == "zero") for n in data.meta["classnames"]}
    predicted = study.predictions
    assert len(predicted) == len(data.arrays["test_labels"]), "only the main model's are kept"


def test_a_second_main_model_is_refused(tmp_path: Path):
    config = on_digits(Misnamed)
    with pytest.raises(ConfigError, match="calls one of its predictors 'global'"):
        federation(config, tmp_path, LocalPool(config)).setup()
