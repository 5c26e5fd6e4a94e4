"""Which network is trained from scratch: the block `models.classifier` of a configuration.

`fedsim.models.classifiers` builds it. Imports nothing heavy.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedsim.config.base import Section

Network = Literal["convnet", "lenet", "alexnet", "vgg11", "resnet18", "vit"]

READS: dict[str, frozenset[str]] = {
    "convnet": frozenset({"depth", "width", "norm"}),
    "lenet": frozenset(),
    "alexnet": frozenset(),
    "vgg11": frozenset({"norm"}),
    "resnet18": frozenset({"width", "norm"}),
    "vit": frozenset({"depth", "width"}),
}
"""What can be chosen of each network; the rest is as its paper has it."""


class ClassifierConfig(Section):
    """A network trained from scratch."""

    name: Network = "convnet"
    """`convnet` (of dataset distillation), `lenet`, `alexnet` and `vgg11` (for CIFAR), `resnet18`,
    or `vit`."""
    depth: int | None = Field(None, gt=0)
    """`convnet`: blocks, 3 by default; `vit`: layers, 6."""
    width: int | None = Field(None, gt=0)
    """`convnet`: channels, 128 by default; `resnet18`: channels of the first stage, 64; `vit`:
    length of a token, 192."""
    norm: Literal["group", "instance", "none"] | None = None
    """`convnet`, `vgg11`, `resnet18`: up to 32 groups of 4 or more channels (the default), one
    group per channel, or none."""
    projection: int | None = Field(None, gt=0)
    """Length of the output of two more layers before the last one, as in MOON; null for none."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """A name alone stands for that network as it is."""
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _read(self) -> ClassifierConfig:
        for setting in ("depth", "width", "norm"):
            if getattr(self, setting) is not None and setting not in READS[self.name]:
                others = " and ".join(name for name, read in READS.items() if setting in read)
                raise ValueError(f"{self.name} has no {setting} to choose, unlike {others}")
        if self.name == "vit" and (self.width or 64) % 64:
            raise ValueError(f"width of vit is {self.width}: heads are 64 wide, use a multiple")
        return self
