"""What clients compute: a group's local training. Times are of the whole group.

Cache keys at the size of 100 classes x 16 shots x 1,024 in both forms, and a small network that is
trained for 1, 2, 5 and 10 clients at once: what the client axis brings.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsim.config.classifier import ClassifierConfig
from fedsim.config.sections import TrainConfig
from fedsim.engine.batching import Group, make_batches
from fedsim.methods.base import Batches
from fedsim.methods.shared.dual import train_keys
from fedsim.methods.training import train_locally
from fedsim.models.cache import cache_logits
from fedsim.models.classifiers import Classifier
from fedsim.models.image_arrays import to_unit_range

CLASSES, SHOTS, DIM, SHARPNESS = 100, 16, 1024, 5.0
IMAGE = (1, 28, 28)


def unit(*shape: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(sum(shape))
    return F.normalize(torch.randn(*shape, generator=rng), dim=-1)


def shards(num_clients: int, low: int, high: int) -> tuple[np.ndarray, ...]:
    sizes = np.random.default_rng(0).integers(low, high + 1, num_clients)
    return tuple(np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1]))


def group_of(rows: tuple[np.ndarray, ...], inputs: torch.Tensor, train: TrainConfig) -> Batches:
    labels = torch.randint(10, (len(inputs),), generator=torch.Generator().manual_seed(0))
    group = Group(0, tuple(range(len(rows))), rows)
    return make_batches(group, inputs, labels, train, 0, 1, to_unit_range_of(inputs))


def to_unit_range_of(inputs: torch.Tensor):
    return to_unit_range if inputs.dtype == torch.uint8 else lambda x: x


@pytest.mark.parametrize("epochs", [1, 5])
@pytest.mark.parametrize("form", ["direct", "dual", "adamw"])
@pytest.mark.benchmark(group="cache keys, 2 clients of 64 to 200 samples")
def test_cache_keys(benchmark, form: str, epochs: int):
    text, keys = unit(CLASSES, DIM), unit(CLASSES * SHOTS, DIM)
    values = F.one_hot(torch.arange(CLASSES).repeat_interleave(SHOTS), CLASSES).float()
    rows = shards(2, 64, 200)
    train = TrainConfig(
        local_epochs=epochs,
        batch_size=32,
        lr=0.001 if form == "adamw" else 0.1,
        optimizer="adamw" if form == "adamw" else "sgd",
    )
    batches = group_of(rows, unit(400, DIM), train)

    def logits(params: dict[str, torch.Tensor], f: torch.Tensor) -> torch.Tensor:
        return 100 * f @ text.T + cache_logits(f, params["keys"], values, SHARPNESS)

    def known(f: torch.Tensor) -> torch.Tensor:
        return 100 * f @ text.T

    if form == "dual":
        benchmark(lambda: train_keys(keys, values, known, 1.0, SHARPNESS, batches).formed())
    else:
        benchmark(lambda: train_locally({"keys": keys}, logits, batches))


@pytest.mark.parametrize("together", [1, 2, 5, 10])
@pytest.mark.benchmark(group="networks, 10 clients of 40 images by so many at once")
def test_networks(benchmark, together: int):
    net = Classifier(ClassifierConfig(name="lenet"), IMAGE, 10)
    start = net.init(torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(256, (400, *IMAGE), generator=rng, dtype=torch.uint8)
    train = TrainConfig(batch_size=10, lr=0.05)
    rows = shards(10, 40, 40)
    groups = [
        group_of(rows[at : at + together], images, train) for at in range(0, len(rows), together)
    ]
    benchmark(lambda: [train_locally(start, net.on_clients, batches) for batches in groups])


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("name", ["convnet", "lenet", "resnet18"])
@pytest.mark.benchmark(group="networks, 5 clients of 32 images of 32x32")
def test_layouts(benchmark, monkeypatch: pytest.MonkeyPatch, name: str, layout: str):
    width = None if name == "lenet" else 16
    net = Classifier(ClassifierConfig(name=name, width=width), (3, 32, 32), 10)
    monkeypatch.setattr(net, "_pools", layout == "channels last")
    start = net.init(torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(256, (160, 3, 32, 32), generator=rng, dtype=torch.uint8)
    batches = group_of(shards(5, 32, 32), images, TrainConfig(batch_size=32, lr=0.05))
    benchmark(lambda: train_locally(start, net.on_clients, batches))
