"""Classifiers trained from scratch, as pure functions of their weights.

The structure is built once on torch's meta device, without a single number. Weights are arguments:
one object serves all clients, and a server may hold several architectures side by side. The
networks are in `fedsim.models.networks`.

    >>> net = Classifier(ClassifierConfig(width=8), (1, 8, 8), num_classes=10)
    >>> weights = net.init(torch.Generator().manual_seed(0))
    >>> net(weights, torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.config.classifier import ClassifierConfig
from fedsim.errors import ConfigError
from fedsim.models.folded import foldable, folded, pools
from fedsim.models.networks import Shape
from fedsim.models.networks.layers import flat_length
from fedsim.params import Params

HEAD = ("head.weight", "head.bias")
"""Names of the last layer's tensors; their rows belong to classes."""

_SMALLEST = 4


class Classifier:
    """A network as functions of its weights; inputs are in [-1, 1] (`fedsim.models.image_arrays`).

    Args:
        settings: The network's name and options.
        image_shape: `(c, h, w)`.
        num_classes: Classes of the data.

    Attributes:
        embed_dim: Length of an embedding, the input of the last layer.
        names: Names of its weights.
        num_params: Number of its parameters.

    Raises:
        ConfigError: If the network cannot be built for images of this shape.
    """

    def __init__(self, settings: ClassifierConfig, image_shape: Shape, num_classes: int) -> None:
        self.settings, self.image_shape, self.num_classes = settings, image_shape, num_classes
        if min(image_shape[1:]) < _SMALLEST:
            size = f"{image_shape[1]}x{image_shape[2]}"
            raise ConfigError(
                f"images of {size} pixels are too small for models.classifier, which needs "
                f"{_SMALLEST} or more a side"
            )
        with torch.device("meta"):
            self._net = _Assembled(self.body(), settings.projection, image_shape, num_classes)
        self._folds = foldable(self._net.body) and foldable(self._net.projection)
        self._pools = pools(self._net.body)
        self.names = tuple(name for name, _ in self._net.named_parameters())
        self.embed_dim = self._net.head.in_features
        self.num_params = sum(p.numel() for p in self._net.parameters())

    def body(self) -> nn.Module:
        """The module that makes flat embeddings `(B, d)` of images, before any projection.

        A subclass may return another one. A sequence of torch's usual layers is trained faster for
        many clients at once than a module with code of its own (`fedsim.models.folded`).
        """
        body: nn.Module = self.settings.module().build(self.settings.options(), self.image_shape)
        return body

    def init(self, rng: torch.Generator) -> Params:
        """First weights, drawn from a CPU generator as torch's layers draw them.

        Convolutions and linear layers, biases included: uniform within 1 / sqrt(fan-in). Norm
        layers: 1 and 0. Tokens and positions of `vit`: normal with deviation 0.02.
        """
        weights: Params = {}
        for prefix, module in self._net.named_modules():
            own = dict(module.named_parameters(recurse=False))
            for name, parameter in own.items():
                shape = tuple(parameter.shape)
                if isinstance(module, nn.Conv2d | nn.Linear):
                    bound = 1 / math.sqrt(own["weight"][0].numel())
                    value = (2 * torch.rand(shape, generator=rng) - 1) * bound
                elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    value = torch.ones(shape) if name == "weight" else torch.zeros(shape)
                else:
                    value = 0.02 * torch.randn(shape, generator=rng)
                weights[f"{prefix}.{name}"] = value
        return {name: weights[name] for name in self.names}

    def __call__(self, weights: Params, x: Tensor) -> Tensor:
        """Images `(B, c, h, w)` -> logits `(B, num_classes)`; other tensors are ignored."""
        return self.classify(weights, self.embed(weights, x))

    def embed(self, weights: Params, x: Tensor) -> Tensor:
        """Images `(B, c, h, w)` -> embeddings `(B, embed_dim)`."""
        return functional_call(self._net, {name: weights[name] for name in self.names}, (x,))

    def classify(self, weights: Params, embedding: Tensor) -> Tensor:
        """Embeddings `(..., B, embed_dim)` -> logits, also over a client axis."""
        weight, bias = (weights[name] for name in HEAD)
        return embedding @ weight.mT + bias.unsqueeze(-2)

    def embed_clients(self, weights: Params, x: Tensor) -> Tensor:
        """The same over the client axis: weights `(C, ...)`, images `(C, B, c, h, w)`.

        Channels lie last where that is faster on CPUs (`make bench`): where networks pool.
        Images that are distilled have gradients of gradients, which are faster the other way.
        """
        if self._folds:
            last = self._pools and x.device.type == "cpu" and not x.requires_grad
            flat = folded(self._net.body, "body", weights, x, channels_last=last)
            return folded(self._net.projection, "projection", weights, flat)
        chosen = {name: weights[name] for name in self.names}
        return vmap(self.embed)(chosen, x)

    def on_clients(self, weights: Params, x: Tensor) -> Tensor:
        """Logits over the client axis, `(C, B, num_classes)`."""
        return self.classify(weights, self.embed_clients(weights, x))

    def class_rows(self, device: torch.device) -> Params:
        """Which rows of which tensors belong to which class."""
        return {name: torch.arange(self.num_classes, device=device) for name in HEAD}


class _Assembled(nn.Module):
    """A body, an optional projection, and a last layer; its output is the embedding."""

    def __init__(
        self, body: nn.Module, projection: int | None, shape: Shape, num_classes: int
    ) -> None:
        super().__init__()
        self.body = body
        length = flat_length(body, shape)
        self.projection: nn.Module = nn.Identity()
        if projection is not None:
            hidden, out = nn.Linear(length, length), nn.Linear(length, projection)
            self.projection, length = nn.Sequential(hidden, nn.ReLU(), out), projection
        self.head = nn.Linear(length, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.body(x))
