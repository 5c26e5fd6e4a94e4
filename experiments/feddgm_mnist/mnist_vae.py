"""A prior that has seen MNIST: an upper bound for feddgm_mnist, and never a fair one.

The decoder of a small autoencoder that was trained on MNIST, `weights/vae_epoch_25.pth` under the
folder `$DATA`. It draws any digit, so latents of a class are those that a classifier of MNIST,
`weights/lenet_epoch=12_test_acc=0.991.pth`, reads as that class.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_DRAWS = 512
"""Latents among which those of a class are looked for."""


class MnistVae:
    """Style latents `(n, 20)`, images `(n, 1, 28, 28)`; its one feature map is the hidden layer."""

    def __init__(self, folder: Path, device: str) -> None:
        self._vae = _load(folder / "vae_epoch_25.pth", device)
        self._judge = _load(folder / "lenet_epoch=12_test_acc=0.991.pth", device)
        self._device = device

    def map_labels(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """For each class, those of 512 draws that the judge finds likeliest to be of it."""
        z = torch.randn(_DRAWS, 20, generator=rng).to(self._device)
        log_p = self._read(self.synthesize(z, None, 0)).log_softmax(1)
        chosen = z.new_empty(len(labels), z.shape[1])
        for label in labels.unique():
            own = labels == label
            chosen[own] = z[log_p[:, label].topk(int(own.sum())).indices]
        return chosen

    def features(self, w: Tensor, layer: int) -> Tensor:
        """The hidden layer, whatever the layer."""
        return F.relu(F.linear(w, self._vae["fc3.weight"], self._vae["fc3.bias"]))

    def synthesize(self, w: Tensor, f: Tensor | None, layer: int) -> Tensor:
        """Images in [-1, 1] from the hidden layer, or from the latents."""
        hidden = self.features(w, layer) if f is None else f
        pixels = F.linear(hidden, self._vae["fc4.weight"], self._vae["fc4.bias"]).sigmoid()
        return 2 * pixels.view(-1, 1, 28, 28) - 1

    def _read(self, images: Tensor) -> Tensor:
        """Logits of LeNet-5 for images in [-1, 1]."""
        w = self._judge
        x = F.pad((images + 1) / 2, (2, 2, 2, 2))
        for layer in ("c1", "c3"):
            x = F.conv2d(x, w[f"convnet.{layer}.weight"], w[f"convnet.{layer}.bias"])
            x = F.max_pool2d(F.relu(x), 2)
        x = F.relu(F.conv2d(x, w["convnet.c5.weight"], w["convnet.c5.bias"])).flatten(1)
        x = F.relu(F.linear(x, w["fc.f6.weight"], w["fc.f6.bias"]))
        return F.linear(x, w["fc.f7.weight"], w["fc.f7.bias"])


def make(device: str) -> MnistVae:
    """The prior, from the folder that `$DATA` names."""
    if "DATA" not in os.environ:
        raise OSError("set DATA to the folder that holds weights/vae_epoch_25.pth")
    return MnistVae(Path(os.environ["DATA"]) / "weights", device)


def _load(path: Path, device: str) -> dict[str, Tensor]:
    return torch.load(path, map_location=device, weights_only=True)
