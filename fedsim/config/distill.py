"""Distillation of synthetic sets: the block `distill` of a configuration.

Defaults are those of FedDGM's public code where it has them. Imports nothing heavy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedsim.config.chosen import Chosen
from fedsim.config.families import PRIORS

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]


class DistillConfig(Chosen):
    """Synthetic sets made on the server: the prior, what is matched, and for how long."""

    family = PRIORS
    choice = "prior"
    always_written = {
        "weights": "pretrained",
        "words": None,
        "init": "generated",
        "layer": 0,
        "denoising_steps": 1,
        "generator_lr": 0.0,
    }

    prior: str = "vae"
    """What images are made of: `pixels`, latents of the generator's decoder (`vae`), the last
    denoising steps before it (`diffusion`), or a GAN, `FILE.py:FUNCTION`."""
    prior_saw_data: bool = False
    """The prior was trained on the data that is evaluated: an upper bound, marked `(leak)` in
    tables and never their best."""
    images_per_class: int = Field(10, gt=0)
    """Images of every class in each client's set."""
    latent_steps: int = Field(100, ge=0)
    """Steps of the latents per client and round; 0 leaves what the prior drew (`prior_only`)."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the latents; `sgd` has momentum 0.5."""
    latent_lr: float = Field(1.0, gt=0)
    """Learning rate of latents."""
    feature_lr: float = Field(1000.0, gt=0)
    """Learning rate of pixels and feature maps."""
    loss: Literal["trajectory", "gradient"] = "trajectory"
    """Match where the student ends, or the direction of its first step."""
    gradient: Literal["constant", "unroll"] = "constant"
    """`trajectory`: without the Hessian, as FedDGM does it, or exactly through all steps."""
    distance: Literal["squared", "layerwise"] = "squared"
    """`trajectory`: over all weights, or the mean over layers without the last bias."""
    student_steps: int = Field(20, gt=0)
    """S: steps of the student on the set."""
    student_batch: int | None = Field(None, gt=0)
    """Images of one student step; null takes the whole set."""
    student_lr: float | Literal["auto"] = 0.01
    """The student's step size at first; `auto` searches the one that matches best."""
    student_lr_lr: float = Field(0.1, ge=0)
    """Learning rate of the step size's logarithm; 0 keeps it. Since d log a = da / a, 0.1 moves
    FedDGM's 0.01 as its 1e-5 does."""
    augment: tuple[Operation, ...] = Field(
        ("color", "crop", "cutout", "flip", "scale", "rotate"), strict=False
    )
    """Differentiable augmentation, in distillation and in training on the sets. Leave out `flip`
    where left and right matter, as in digits."""
    clients_at_once: int = Field(1, gt=0)
    """Clients distilled together on a leading axis: faster on GPUs, and on CPUs where sets are
    small."""

    @property
    def is_gan(self) -> bool:
        """Whether the prior is a GAN from the user's file."""
        return self.prior.partition(":")[0].endswith(".py")

    @classmethod
    def part_named(cls, name: str) -> str:
        """A file's function is a GAN."""
        return "FILE.py:FUNCTION" if name.partition(":")[0].endswith(".py") else name

    @model_validator(mode="after")
    def _possible(self) -> DistillConfig:
        if self.student_lr != "auto" and self.student_lr <= 0:
            raise ValueError(f"student_lr is {self.student_lr:g}: use a number above 0, or auto")
        if self.given().get("generator_lr"):
            if "generator_lr" in self.unread():
                raise ValueError(
                    "generator_lr fine-tunes the decoder of prior vae, not "
                    f"{self.prior!r}: leave it out"
                )
            if self.clients_at_once > 1:
                raise ValueError(
                    "generator_lr gives every client a decoder of its own, and clients_at_once is "
                    f"{self.clients_at_once}: set it to 1"
                )
        if len(set(self.augment)) != len(self.augment):
            raise ValueError("augment names an operation twice")
        return self
