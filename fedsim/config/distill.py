"""Distillation of synthetic sets: the block `distill` of a configuration.

Defaults are those of FedDGM's public code where it has them. Imports nothing heavy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedsim.config.base import Section

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]


class DistillConfig(Section):
    """Synthetic sets made on the server: the prior, what is matched, and for how long."""

    prior: str = "vae"
    """What images are made of: `pixels`, latents of the generator's decoder (`vae`), the last
    denoising steps before it (`diffusion`), or a GAN, `FILE.py:FUNCTION`."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` is a control: the generator's architecture without what it has learned."""
    prior_saw_data: bool = False
    """The prior was trained on the data that is evaluated: an upper bound, marked `(leak)` in
    tables and never their best."""
    words: tuple[str, ...] | None = Field(None, strict=False)
    """What the generator is asked for, one per class, instead of the classes' names: other words
    make a mismatched prior, a control."""
    init: Literal["generated", "noise"] = "generated"
    """`pixels`, `vae`: start from images of the generator, or from noise."""
    layer: int = Field(0, ge=0)
    """`vae`, a GAN: stages of the decoder that run before the feature map that is optimised; 0 is
    the latent itself."""
    denoising_steps: int = Field(1, gt=0)
    """`diffusion`: how many of the last steps gradients pass through."""
    images_per_class: int = Field(10, gt=0)
    """Images of every class in each client's set."""
    latent_steps: int = Field(100, ge=0)
    """Steps of the latents per client and round; 0 leaves what the prior drew (`prior_only`)."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the latents; `sgd` has momentum 0.5."""
    latent_lr: float = Field(1.0, gt=0)
    """Learning rate of latents."""
    feature_lr: float = Field(1000.0, gt=0)
    """Learning rate of pixels and feature maps."""
    generator_lr: float = Field(0.0, ge=0)
    """`vae`: learning rate of the decoder's weights, by Adam; every client's set has a decoder of
    its own, which starts from the pretrained one in each round. 0 keeps it frozen."""
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

    @model_validator(mode="after")
    def _possible(self) -> DistillConfig:
        if self.student_lr != "auto" and self.student_lr <= 0:
            raise ValueError(f"student_lr is {self.student_lr:g}: use a number above 0, or auto")
        if self.prior not in ("pixels", "vae", "diffusion") and not self.is_gan:
            raise ValueError(
                f"prior {self.prior!r} is none of pixels, vae and diffusion, nor FILE.py:FUNCTION"
            )
        if self.generator_lr and self.prior != "vae":
            raise ValueError(
                f"generator_lr fine-tunes the decoder of prior vae, not {self.prior!r}: leave it "
                "out"
            )
        if self.generator_lr and self.clients_at_once > 1:
            raise ValueError(
                f"generator_lr gives every client a decoder of its own, and clients_at_once is "
                f"{self.clients_at_once}: set it to 1"
            )
        if len(set(self.augment)) != len(self.augment):
            raise ValueError("augment names an operation twice")
        return self

    @property
    def is_gan(self) -> bool:
        """Whether the prior is a GAN from the user's file."""
        return self.prior.partition(":")[0].endswith(".py")
