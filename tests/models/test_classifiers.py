"""Networks trained from scratch: shapes, known sizes, starts, and the client axis."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from fedsim.config.classifier import ClassifierConfig
from fedsim.config.families import NETWORKS
from fedsim.errors import ConfigError
from fedsim.models.classifiers import HEAD, Classifier
from fedsim.params import Params
from fedsim.process import settle_process

SMALL: dict[str, dict[str, Any]] = {  # quick enough to train here
    "convnet": {"width": 8},
    "lenet": {},
    "resnet18": {"width": 8},
    "vit": {"width": 64, "depth": 2},
}


@pytest.fixture(autouse=True)
def numerics() -> None:
    settle_process(1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=rng(seed)) * 2 - 1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_logits(name: str, side: int, channels: int):
    net = Classifier(ClassifierConfig(name=name), (channels, side, side), 7)
    weights = net.init(rng())
    x = images(2, channels, side, side)
    logits = net(weights, x)
    assert logits.shape == (2, 7)
    assert not torch.equal(logits[0], logits[1]), "different images, different logits"
    assert net.embed(weights, x).shape == (2, net.embed_dim)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_can_be_read(name: str, channels: int):
    net = Classifier(ClassifierConfig(name=name), (channels, 224, 224), 7)
    logits = net({k: v.to("meta") for k, v in net.init(rng()).items()}, torch.empty(
        1, channels, 224, 224, device="meta"))  # fmt: skip
    assert logits.shape == (1, 7)


@pytest.mark.parametrize("name", SMALL)
def test_images_need_not_be_square_or_even(name: str):
    net = Classifier(ClassifierConfig(name=name, **SMALL[name]), (3, 21, 13), 5)
    assert net(net.init(rng()), images(2, 3, 21, 13)).shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "shape", "num_classes", "count"),
    [
        ({"name": "convnet", "depth": 3}, (3, 32, 32), 10, 320_010),
        ({"name": "convnet", "depth": 5}, (3, 32, 32), 10, 596_490),
        ({"name": "lenet"}, (1, 28, 28), 10, 61_706),
        ({"name": "lenet"}, (3, 32, 32), 10, 62_006),
        ({"name": "alexnet"}, (3, 32, 32), 10, 1_872_202),
        ({"name": "vgg11"}, (3, 32, 32), 10, 9_231_114),
        ({"name": "resnet18"}, (3, 32, 32), 10, 11_173_962),
        ({"name": "resnet18"}, (3, 224, 224), 1000, 11_689_512),
        ({"name": "vit", "depth": 12}, (3, 224, 224), 1000, 5_717_416),  # DeiT-Ti
    ],
)
def test_sizes_are_the_published_ones(
    settings: dict[str, Any], shape: tuple[int, int, int], num_classes: int, count: int
):
    net = Classifier(ClassifierConfig(**settings), shape, num_classes)
    assert net.num_params == count
    assert sum(v.numel() for v in net.init(rng()).values()) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_follow_the_generator_alone(name: str):
    net = Classifier(ClassifierConfig(name=name), (1, 8, 8), 4)
    before = torch.random.get_rng_state()
    first, again, other = net.init(rng()), net.init(rng()), net.init(rng(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_layers_begin_as_torchs_do():
    net = Classifier(ClassifierConfig(width=64), (3, 32, 32), 10)
    weights = net.init(rng())
    for key, fan_in in {"body.4": 64 * 9, "head": 64 * 16}.items():
        for value in (weights[f"{key}.weight"], weights[f"{key}.bias"]):
            assert value.abs().max() <= fan_in**-0.5
        spread = weights[f"{key}.weight"].std().item()
        assert spread == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
    assert (weights["body.1.weight"] == 1).all()
    assert (weights["body.1.bias"] == 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_network_learns(name: str):
    """A handful of images is fitted by a few steps of gradient descent."""
    net = Classifier(ClassifierConfig(name=name, **SMALL[name]), (1, 8, 8), 4)
    x, y = images(8, 1, 8, 8), torch.arange(8) % 4
    weights = {k: v.requires_grad_() for k, v in net.init(rng()).items()}
    optimizer_state = {k: torch.zeros_like(v) for k, v in weights.items()}
    for _ in range(200):
        gradients = torch.autograd.grad(F.cross_entropy(net(weights, x), y), [*weights.values()])
        with torch.no_grad():
            for (key, value), gradient in zip(weights.items(), gradients, strict=True):
                optimizer_state[key].mul_(0.9).add_(gradient)
                value.sub_(0.05 * optimizer_state[key])
    assert F.cross_entropy(net(weights, x), y).item() < 0.2


# --- the client axis -----------------------------------------------------------------------------


def clients(net: Classifier, count: int) -> Params:
    each = [net.init(rng(seed)) for seed in range(count)]
    return {k: torch.stack([weights[k] for weights in each]) for k in each[0]}


@pytest.mark.parametrize("name", SMALL)
def test_every_client_has_its_own_network(name: str):
    net = Classifier(ClassifierConfig(name=name, **SMALL[name]), (1, 8, 8), 4)
    stacked, x = clients(net, 3), images(3, 5, 1, 8, 8)
    together = net.on_clients(stacked, x)
    assert together.shape == (3, 5, 4)
    for c in range(3):
        alone = net({k: v[c] for k, v in stacked.items()}, x[c])
        torch.testing.assert_close(together[c], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_gradients_do_not_depend_on_who_the_neighbours_are(name: str, count: int):
    net = Classifier(ClassifierConfig(name=name, **SMALL[name]), (3, 12, 12), 4)
    stacked, x = clients(net, 9), images(9, 6, 3, 12, 12)
    y = torch.arange(9 * 6).view(9, 6) % 4
    for at in (0, count - 1):
        found = []
        for others in ([*range(count - 1)], [*range(8, 8 - count + 1, -1)]):
            ids = [c for c in others if c != 5][: count - 1]
            ids += [c for c in range(9) if c not in (*ids, 5)][: count - 1 - len(ids)]
            ids.insert(at, 5)
            weights = {k: v[ids].requires_grad_() for k, v in stacked.items()}
            logits = net.on_clients(weights, x[ids])
            loss = F.cross_entropy(logits.flatten(0, 1), y[ids].flatten(), reduction="sum")
            found.append([g[at] for g in torch.autograd.grad(loss, [*weights.values()])])
        assert all(map(torch.equal, *found))


# --- settings ------------------------------------------------------------------------------------


def test_a_name_alone_is_enough():
    assert ClassifierConfig.model_validate("lenet") == ClassifierConfig(name="lenet")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "lenet", "depth": 3}, "lenet has no depth to choose, unlike convnet and vit"),
        ({"name": "vit", "norm": "group"}, "vit has no norm"),
        ({"name": "vit", "width": 100}, "heads are 64 wide"),
        ({"name": "vgg16"}, "name"),
    ],
)
def test_what_a_network_does_not_have_is_refused(given: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        ClassifierConfig(**given)


def test_images_that_no_network_can_read_are_refused():
    with pytest.raises(ConfigError, match="3x8 pixels are too small"):
        Classifier(ClassifierConfig(), (1, 3, 8), 4)
    with pytest.raises(ConfigError, match="norm 'instance' has nothing to normalise"):
        Classifier(ClassifierConfig(depth=5, norm="instance"), (1, 8, 8), 4)
    Classifier(ClassifierConfig(depth=5, norm="group"), (1, 8, 8), 4)


def test_norm_layers_can_be_chosen():
    counts = {}
    for norm in ("group", "instance", "none"):
        net = Classifier(ClassifierConfig(width=64, norm=norm), (1, 16, 16), 4)
        counts[norm] = net.num_params
        logits = net(net.init(rng()), images(2, 1, 16, 16))
        counts[f"{norm} logits"] = logits[0, 0].item()
    assert counts["group"] == counts["instance"] == counts["none"] + 3 * 2 * 64
    assert len({counts[f"{norm} logits"] for norm in ("group", "instance", "none")}) == 3


def test_a_projection_stands_before_the_last_layer():
    net = Classifier(ClassifierConfig(width=8, projection=16), (1, 8, 8), 4)
    weights = net.init(rng())
    assert net.embed_dim == 16
    assert weights["head.weight"].shape == (4, 16)
    x = images(3, 1, 8, 8)
    logits = net.embed(weights, x) @ weights[HEAD[0]].T + weights[HEAD[1]]
    torch.testing.assert_close(net(weights, x), logits)
