"""Clients folded into channels: the same numbers and gradients as one client at a time."""

import pytest
import torch
from torch import nn
from torch.func import vmap

from fedsim.config.classifier import ClassifierConfig
from fedsim.errors import ConfigError
from fedsim.models.classifiers import Classifier
from fedsim.models.folded import foldable

CLIENTS, BATCH = 3, 4
NETWORKS = [
    ({"name": "convnet", "depth": 2, "width": 8}, (1, 8, 8)),
    ({"name": "convnet", "depth": 3, "width": 8, "norm": "instance"}, (3, 16, 16)),
    ({"name": "convnet", "depth": 3, "width": 8, "norm": "none", "projection": 5}, (3, 12, 10)),
    ({"name": "lenet"}, (1, 28, 28)),
    ({"name": "alexnet"}, (3, 8, 8)),
    ({"name": "vgg11"}, (1, 8, 8)),
    ({"name": "resnet18", "width": 8}, (3, 8, 8)),
    ({"name": "resnet18", "width": 8, "norm": "none"}, (3, 64, 64)),
]


def stacked(net: Classifier) -> dict[str, torch.Tensor]:
    """Other weights for every client, norm layers included."""
    rng = torch.Generator().manual_seed(0)
    clients = [net.init(rng) for _ in range(CLIENTS)]
    weights = {k: torch.stack([w[k] for w in clients]) for k in net.names}
    noise = {k: 0.05 * torch.randn(v.shape, generator=rng) for k, v in weights.items()}
    return {k: (v + noise[k]).double().requires_grad_() for k, v in weights.items()}


@pytest.mark.parametrize(("settings", "shape"), NETWORKS)
def test_folded_networks_give_every_clients_logits_and_gradients(settings: dict, shape: tuple):
    net = Classifier(ClassifierConfig(**settings), shape, 10)
    assert foldable(net._net.body)
    weights = stacked(net)
    x = torch.rand(CLIENTS, BATCH, *shape, generator=torch.Generator().manual_seed(1)).double()
    found = net.on_clients(weights, x)
    expected = torch.stack(
        [net({k: v[c] for k, v in weights.items()}, x[c]) for c in range(CLIENTS)]
    )
    assert found.shape == (CLIENTS, BATCH, 10)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).double()
    leaves = list(weights.values())
    for name, a, b in zip(
        weights,
        torch.autograd.grad(found, leaves, slope),
        torch.autograd.grad(expected, leaves, slope),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_transformers_are_left_to_vmap():
    net = Classifier(ClassifierConfig(name="vit", width=64, depth=1), (1, 8, 8), 10)
    assert not foldable(net._net.body)
    weights, x = stacked(net), torch.rand(CLIENTS, 2, 1, 8, 8).double()
    expected = vmap(net.embed)({k: weights[k] for k in net.names}, x)
    assert torch.equal(net.embed_clients(weights, x), expected)


class Doubled(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "part",
    [
        Doubled(),
        nn.BatchNorm2d(4),
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        nn.Flatten(2),
        nn.Sequential(nn.ReLU(), nn.Dropout()),
    ],
)
def test_what_is_not_known_is_not_folded(part: nn.Module):
    assert not foldable(nn.Sequential(nn.Conv2d(1, 4, 3), part))


def test_layers_that_share_their_weights_are_not_folded_and_pools_that_are_used_twice_are():
    conv, pool = nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2)
    assert not foldable(nn.Sequential(conv, conv))
    assert foldable(nn.Sequential(conv, pool, pool))


def test_maps_of_one_number_a_group_are_refused_as_they_are_for_one_client():
    settings = ClassifierConfig(name="convnet", depth=3, width=8, norm="instance")
    with pytest.raises(ConfigError, match="shrunk to one pixel"):
        Classifier(settings, (1, 4, 4), 10)
