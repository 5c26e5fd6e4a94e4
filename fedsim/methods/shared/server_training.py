"""Training the server's networks on synthetic images, as items for an `Executor`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.config.distill import DistillConfig, Operation
from fedsim.config.sections import TrainConfig
from fedsim.distill.augment import augment, draw_augmentation
from fedsim.methods.base import Labelled
from fedsim.methods.training import train_centrally
from fedsim.models.classifiers import Classifier
from fedsim.models.image_arrays import to_unit_range
from fedsim.params import Params, to_device
from fedsim.seeding import torch_rng


class ServerTraining(BaseModel, extra="forbid"):
    """Settings of training on synthetic images; the defaults are those of FedDGM's public code."""

    server_epochs: int = Field(1000, gt=0)
    """Passes over a round's images."""
    server_batch_size: int = Field(256, gt=0)
    server_lr: float = Field(0.01, gt=0)
    server_momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of the surrogate's training."""
    server_weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the surrogate's training."""
    server_augment: tuple[Operation, ...] | None = Field(None, strict=False)
    """Differentiable augmentation of the images; null takes matching's own, `distill.augment`."""

    def train_config(self) -> TrainConfig:
        """The same settings in the words of local training."""
        return TrainConfig(
            local_epochs=self.server_epochs,
            batch_size=self.server_batch_size,
            lr=self.server_lr,
            momentum=self.server_momentum,
            weight_decay=self.server_weight_decay,
        )

    def augmentation(self, distill: DistillConfig) -> tuple[Operation, ...]:
        """The operations of which one is drawn per batch."""
        return distill.augment if self.server_augment is None else self.server_augment


@dataclass(frozen=True)
class Training:
    """One network to train, as it is sent to another process.

    Attributes:
        net: The network.
        start: Its weights.
        images: uint8 `(n, c, h, w)`.
        labels: `(n,)` int64.
        train: How to train it; `local_epochs` is one number.
        augment: Operations of differentiable augmentation; one is drawn per batch.
        key: Name of the random streams of order and augmentation, after the run's seed.
        device: The device to compute on.
    """

    net: Classifier
    start: Params
    images: Tensor
    labels: Tensor
    train: TrainConfig
    augment: tuple[str, ...]
    key: tuple[int | str, ...]
    device: str


def train_on_images(work: Training) -> Params:
    """The network's weights after training, on the CPU."""
    seed, *purpose = work.key
    assert isinstance(seed, int)
    order = torch_rng(seed, "server_order", *purpose)
    draws = torch_rng(seed, "server_augmentation", *purpose)

    def logits(params: Params, pixels: Tensor) -> Tensor:
        draw = draw_augmentation(work.augment, len(pixels), draws)
        return work.net(params, augment(to_unit_range(pixels), draw))

    data = to_device(Labelled(work.images, work.labels), work.device)
    start = to_device(work.start, work.device)
    return to_device(train_centrally(start, logits, data, work.train, order), "cpu")
