"""Which network is trained from scratch: the block `models.classifier` of a configuration.

`fedsim.models.classifiers` builds it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from fedsim.config.chosen import Chosen
from fedsim.config.families import NETWORKS


class ClassifierConfig(Chosen):
    """A network trained from scratch."""

    family = NETWORKS
    choice = "name"
    always_written = {"depth": None, "width": None, "norm": None}

    name: str = "convnet"
    """`convnet` (of dataset distillation), `lenet`, `alexnet` and `vgg11` (for CIFAR), `resnet18`,
    or `vit`."""
    projection: int | None = Field(None, gt=0)
    """Length of the output of two more layers before the last one, as in MOON; null for none."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """A name alone means that network with default options."""
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _nothing_unread(self) -> ClassifierConfig:
        for option in self.unread():
            others = " and ".join(self.parts_with(option))
            raise ValueError(f"{self.name} has no {option} to choose, unlike {others}")
        return self
