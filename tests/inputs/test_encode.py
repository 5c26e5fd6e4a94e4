"""Encoding in shards: the same features however it goes, and only what is missing is encoded."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.config import Experiment
from fedsim.data.datasets import load_dataset
from fedsim.data.images import ImagePaths
from fedsim.errors import DataError
from fedsim.inputs import encode as encode_module
from fedsim.inputs.encode import Shard, extract_here
from fedsim.inputs.prepare import InputSteps, prepare
from fedsim.inputs.run_inputs import RunInputs
from fedsim.methods import method_class
from fedsim.models.clip import Clip, load_clip
from fedsim.process import settle_process
from fedsim.storage.array_cache import UnfinishedEntry
from tests.helpers import experiment

SIZES = {"train": 45, "val": 6, "test": 10}
SHARD = 20
SHARDS = [20, 20, 5, 6, 10]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8x8 in three splits."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    arrays = {"classnames": np.array(["one", "two"])}
    for split, count in SIZES.items():
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 2
    np.savez(path, **arrays)
    return path


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "SHARD", SHARD)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images in every call of the encoder."""
    sizes: list[int] = []
    whole = encode_module.encode

    def counted(clip: Clip, pixels: bool, images: np.ndarray | ImagePaths) -> np.ndarray:
        sizes.append(len(images))
        return whole(clip, pixels, images)

    monkeypatch.setattr(encode_module, "encode", counted)
    return sizes


class Dying:
    """Encodes some shards, the last ones first, and is then interrupted."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(
        self, clip: Clip, pixels: bool, shards: Sequence[Shard]
    ) -> Iterator[tuple[int, np.ndarray]]:
        for done in extract_here(clip, pixels, shards[::-1]):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            yield done


def config(data: Path | str) -> Experiment:
    models = {"clip": "tiny-clip", "generator": None}
    return experiment(data, "fedavg_head", models=models)


def prepared(data: Path | str, method: str = "fedavg_head", **how: object) -> RunInputs:
    return prepare(config(data), method_class(method), CPU, synthetic=False, **how)  # type: ignore[arg-type]


def test_features_are_the_encoders_in_batches_of_256_within_1024(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
):
    """This layout is part of every published number: it decides the last bits."""
    monkeypatch.setattr(encode_module, "SHARD", 1024)
    found, digits = prepared("digits").arrays, load_dataset("digits")
    for name, split in (("train", digits.train), ("val", digits.val), ("test", digits.test)):
        pixels = clip.prepare(split.load_images())
        expected = [clip.encode_images(shard, batch_size=256) for shard in pixels.split(1024)]
        assert np.array_equal(found[f"{name}_inputs"], torch.cat(expected))


def test_pixels_are_those_that_the_encoder_takes(file: Path, clip: Clip):
    found, images = prepared(file, "fedavg_finetune").arrays, np.load(file)
    for split in SIZES:
        expected = clip.prepare(images[f"x_{split}"]).numpy()
        assert np.array_equal(found[f"{split}_inputs"], expected)


def test_files_are_decoded_shard_by_shard(
    tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encode_module, "SHARD", 7)
    monkeypatch.setattr(encode_module, "BATCH", 3)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("one", "two"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    loads: list[int] = []
    load = ImagePaths.load

    def counted(self: ImagePaths, indices: np.ndarray | None = None) -> np.ndarray:
        found = load(self, indices)
        loads.append(len(found))
        return found

    monkeypatch.setattr(ImagePaths, "load", counted)
    found = prepared(tmp_path / "images").arrays
    assert max(loads) == 3  # a whole shard is never in memory
    assert sum(loads) == 40
    files = sorted((tmp_path / "images" / "test").rglob("*.png"))
    expected = clip.encode_images(clip.prepare([Image.open(file) for file in files]))
    np.testing.assert_allclose(found["test_inputs"], expected, atol=1e-6)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_kill_costs_the_shard_in_flight(file: Path, after: int, encoded: list[int], store: Path):
    whole = prepared(file).arrays
    os.rename(store, store.with_name("whole"))
    encoded.clear()
    with pytest.raises(KeyboardInterrupt):
        prepared(file, extract=Dying(after))
    finished = SHARDS[len(SHARDS) - after :]
    assert encoded == [*finished[::-1], SHARDS[len(SHARDS) - after - 1]]
    encoded.clear()
    told: list[tuple[int, int]] = []
    found = prepared(file, progress=lambda *seen: told.append(seen)).arrays
    assert encoded == SHARDS[: len(SHARDS) - after]
    assert told[0] == (sum(finished), sum(SHARDS))
    assert told[-1] == (sum(SHARDS), sum(SHARDS))
    assert len(told) == 1 + len(encoded)
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert not list(store.glob(".parts-*"))
    encoded.clear()
    prepared(file)
    assert encoded == []


@pytest.mark.parametrize("damage", ["cut short", "empty", "other bytes", "another shape"])
def test_a_damaged_shard_is_encoded_again(file: Path, damage: str, encoded: list[int], store: Path):
    whole = prepared(file).arrays
    os.rename(store, store.with_name("whole"))
    with pytest.raises(KeyboardInterrupt):
        prepared(file, extract=Dying(4))
    (second,) = store.glob(".parts-*/000001.npy")
    content = bytearray(second.read_bytes())
    if damage == "cut short":
        second.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        second.write_bytes(b"")
    elif damage == "other bytes":
        content[len(content) // 2] ^= 1
        second.write_bytes(content)
    else:
        (step,) = InputSteps(config(file), method_class("fedavg_head")).real
        UnfinishedEntry(step.key).kept(1, np.zeros((SHARD, 3), np.float32))
    encoded.clear()
    found = prepared(file).arrays
    assert encoded == [SHARD, SHARD]  # the one that was in flight, and the damaged one
    assert np.array_equal(found["train_inputs"], whole["train_inputs"])


def test_a_cache_that_is_full_is_told(file: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"No space left.*set FEDSIM_CACHE"):
        prepared(file)


def work(file: str, folder: str) -> None:
    """One of two processes that prepare the same data; the first dies in its third shard."""
    os.environ["FEDSIM_CACHE"] = f"{folder}/cache"
    log, whole = Path(folder, "log"), encode_module.encode
    settle_process(1)

    def counted(clip: Clip, pixels: bool, images: np.ndarray | ImagePaths) -> np.ndarray:
        lines = log.read_text().split() if log.exists() else []
        if len(lines) == 2 and lines[0] == str(os.getpid()):
            os._exit(9)  # as with `kill -9`: nothing is tidied up
        log.write_text(" ".join([*lines, str(os.getpid())]))
        return whole(clip, pixels, images)

    encode_module.encode, encode_module.SHARD = counted, SHARD
    np.save(f"{folder}/{os.getpid()}.npy", prepared(Path(file)).arrays["train_inputs"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_another_process_goes_on_where_one_was_killed(file: Path, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(str(file), str(tmp_path))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {worker.exitcode for worker in workers} == {0, 9}
    who = (tmp_path / "log").read_text().split()
    survivor = next(str(worker.pid) for worker in workers if worker.exitcode == 0)
    assert len(who) == len(SHARDS)  # none was encoded twice
    assert [pid == survivor for pid in who] == [False, False, True, True, True]
    found = np.load(tmp_path / f"{survivor}.npy")
    assert np.array_equal(found, prepared(file).arrays["train_inputs"])
