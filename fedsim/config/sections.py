"""The blocks of an experiment's configuration: every setting, typed, frozen and checked.

`fedsim.config` puts them together. Imports nothing heavy.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedsim.config.base import Section
from fedsim.config.chosen import Chosen
from fedsim.config.classifier import ClassifierConfig
from fedsim.config.families import SCHEMES, SERVER_OPTIMISERS

Auto = Literal["auto"]
Epochs = Annotated[int, Field(gt=0)]


def _with_one_place(prompts: tuple[str, ...]) -> tuple[str, ...]:
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise ValueError(f"prompt {prompt!r} needs exactly one {{}} for the class name")
    return prompts


Prompts = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_with_one_place)]


class DataConfig(Section):
    """Which images or features, and how they are read (see `fedsim.data.datasets.load_dataset`)."""

    name: str = "digits"
    """`digits`, a set of CoOp such as `caltech101`, a path (`.npz` file or image folder), or
    `hf:NAME[:CONFIG]`."""
    path: str | None = None
    """Where the data is, when `name` does not say it; of CoOp's sets, their common folder; of
    `hf:`, a copy on disk."""
    classnames: tuple[str, ...] | None = Field(None, strict=False)
    templates: Prompts | None = None
    """Prompt templates with one `{}`; by default the data set's own."""
    image_column: str | None = None
    label_column: str | None = None
    client_column: str | None = None
    domain_column: str | None = None
    domains: bool = False
    """An image folder is `domain/class/` instead of `class/`."""
    test_domain: str | None = None
    """Test on this domain (where the data has a test split, on its samples there), train on the
    others."""
    image_size: int | None = Field(None, gt=0)
    """Side in pixels for image files of unequal sizes; 224 for CoOp's sets."""
    train_split: str = "train"
    only_text_classes: bool = False
    """Leave out classes without a text feature."""
    resplit: bool = False
    """Draw train, val and test of `digits` anew with each seed: repeated splits."""
    shots: int | None = Field(None, gt=0)
    """Training samples per class, at most; null takes all. CoOp's sets then have at most 4 val
    samples per class."""
    prototype_shots: int | None = Field(None, gt=0, le=4)
    """Without text features: class means of so many val samples per class stand in for them."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    max_train_samples: int | None = Field(None, gt=0)
    max_test_samples: int | None = Field(None, gt=0)
    """Test samples in all, at most, where testing costs too much: the same ones for every seed;
    class shares are kept."""


class PartitionConfig(Chosen):
    """How the training samples are split over clients (see `fedsim.data.partition.schemes`)."""

    family = SCHEMES
    choice = "scheme"
    always_written = {
        "dirichlet_alpha": None,
        "classes_per_client": None,
        "samples_per_client": None,
        "size_sigma": None,
        "imbalance_factor": None,
    }

    scheme: str = "dirichlet_label"
    num_clients: int = Field(10, gt=0)
    min_samples: int = Field(2, gt=0)
    seed: int | None = Field(None, ge=0)
    """Seed of the split alone; by default the experiment's seed."""

    @property
    def label(self) -> str:
        """Short name in tables and plots, such as `dirichlet_label 0.05`."""
        values = [value for _, value in self.options() if value is not None]
        if not values:
            return self.scheme
        return (
            f"{self.scheme} {values[0]:g}"
            if isinstance(values[0], int | float)
            else (f"{self.scheme} {values[0]}")
        )

    @property
    def shares_samples(self) -> bool:
        """Whether clients may hold the same samples."""
        return getattr(self.module(), "SHARES_SAMPLES", False)

    @property
    def counts_clients(self) -> bool:
        """Whether the data can say how many clients there are."""
        return getattr(self.module(), "COUNTS_CLIENTS", False)


class ModelsConfig(Section):
    """Frozen encoder, server-side generator, and networks trained from scratch."""

    clip: str | None = "tiny-clip"
    """`tiny-clip`, an open_clip `NAME/TAG`, a local folder, or null for precomputed features and
    for methods that train a classifier from scratch."""
    generator: str | None = "tiny-diffusion"
    """`tiny-diffusion`, a diffusers pipeline id, a local folder of one, or a folder of images made
    elsewhere, `folder/<class name>/*.png`."""
    generator_steps: int | None = Field(None, gt=0)
    generator_guidance: float | None = Field(None, ge=0)
    logit_scale: float | None = Field(None, gt=0)
    """Factor of the text logits; by default the encoder's own (100 for precomputed features)."""
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig)
    """What methods on images train: a name, such as `lenet`, or a mapping."""


class SyntheticConfig(Section):
    """The server's class-balanced generated set: how its images are asked for and chosen."""

    prompts: Annotated[Prompts, Field(min_length=1)] | None = None
    """Prompt templates with one `{}`, taken in turn; by default the data set's first one."""
    filter: Literal["none", "agreement", "similarity"] = "none"
    """Which candidates are kept: all, those the encoder reads as their class, or the closest."""
    candidates_per_image: int = Field(2, gt=1)
    """Images drawn for every image that is kept, where there is a filter."""
    augment_views: int = Field(1, gt=0)
    """A: random crops whose features are averaged into one key (Tip-Adapter takes 10); 1 takes
    the image as it is."""
    augment_flip: bool = False
    """Flip half of the views left to right, as Tip-Adapter does; wrong for digits and text."""

    def drawn_per_class(self, images_per_class: int) -> int:
        """Images made for every class, of which a filter keeps `images_per_class`."""
        return images_per_class * (1 if self.filter == "none" else self.candidates_per_image)


class CacheConfig(Section):
    """The cache model: keys, values and how they weigh against the text classifier."""

    init: Literal["generated", "text", "random", "public_shots", "mixed"] = "generated"
    """Where the keys come from. Only `generated` is CacheFL; `mixed` adds public shots to it."""
    images_per_class: int = Field(16, gt=0)
    """K: keys per class."""
    real_fraction: float = Field(0.5, gt=0, lt=1)
    """`mixed`: share of each class's keys that are public labelled images, 1 to 4 of them."""
    trainable: Literal["keys", "keys_values", "keys_scales"] = "keys"
    """What clients train: the keys alone, or also the values, or also ratio and sharpness."""
    form: Literal["direct", "dual"] = "direct"
    """How keys are trained: as they are, or as sums over a client's samples, which under SGD is the
    same up to rounding, and faster where a client has fewer samples than features have numbers."""
    residual_ratio: float = Field(1.0, ge=0)
    """Weight of the cache logits (Tip-Adapter's alpha)."""
    sharpness: float = Field(5.0, gt=0)
    """How fast affinity falls with distance (Tip-Adapter's beta)."""

    @model_validator(mode="after")
    def _mixable(self) -> CacheConfig:
        if self.init == "mixed" and self.images_per_class < 2:
            raise ValueError(
                "init 'mixed' joins generated and public images: set cache.images_per_class to 2 "
                "or more"
            )
        return self


class TrainConfig(Section):
    """Rounds and local training, the same settings for every method."""

    rounds: int = Field(10, ge=0)
    participation: float = Field(1.0, gt=0, le=1)
    """Share of clients sampled per round, at least one."""
    cohort_size: int | None = Field(None, gt=0)
    """Clients sampled per round, instead of `participation`."""
    local_epochs: Epochs | Annotated[tuple[Epochs, ...], Field(strict=False, min_length=1)] = 1
    """Passes over the local data per round. A list has one entry per round; its last one stays."""
    batch_size: int = Field(32, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate falls over the rounds; cosine ends near 0."""
    logit_adjustment: Literal["none", "log_prior", "fedlc"] = "none"
    """Local loss on logits shifted by the client's own label counts: tau log p (Menon et al.,
    2021), or -tau n^(-1/4) (FedLC, Zhang et al., 2022)."""
    logit_adjustment_tau: float = Field(1.0, gt=0)
    """How strong that shift is."""
    mask_absent_classes: bool = False
    """No gradient through the logits of classes that a client does not hold."""
    proximal_mu: float = Field(0.0, ge=0)
    """FedProx (Li et al., 2020): weight of the squared distance to what the server sent."""
    augment_views: int = Field(1, gt=0)
    """V: forms of each training image that are encoded, itself and V - 1 random crops; each local
    epoch takes one of them, drawn anew. 1 takes the image as it is."""
    augment_flip: bool = False
    """Flip half of these crops left to right; wrong for digits and text."""
    seed: int | None = Field(None, ge=0)
    """Seed of cohorts, batches and weights; by default the experiment's seed."""

    def epochs(self, round: int) -> int:
        """Local epochs of a round (from 1)."""
        if isinstance(self.local_epochs, int):
            return self.local_epochs
        return self.local_epochs[min(max(round, 1), len(self.local_epochs)) - 1]

    def at(self, round: int) -> TrainConfig:
        """The settings of one round (from 1): one number of epochs, the scheduled learning rate."""
        lr = self.lr
        if self.lr_schedule == "cosine" and self.rounds:
            lr *= (1 + math.cos(math.pi * (max(round, 1) - 1) / self.rounds)) / 2
        return self.model_copy(update={"local_epochs": self.epochs(round), "lr": lr})


class ServerConfig(Chosen):
    """The server's step on the averaged update, the same for every method that averages."""

    family = SERVER_OPTIMISERS
    choice = "optimizer"
    always_written = {"momentum": 0.9, "beta2": 0.99, "epsilon": 1e-3}

    optimizer: str = "mean"
    """`mean` (FedAvg), `momentum` (FedAvgM), `adam` (FedAdam) or `yogi` (FedYogi)."""
    lr: float = Field(1.0, gt=0)
    """Factor of the server's step."""
    class_weighting: float = Field(0.0, ge=0, le=1)
    """Weight of a client where a parameter has a row per class: its samples of that class (1), its
    size (0), or a mixture of both."""


class WireConfig(Section):
    """How updates are compressed on their way up."""

    compression: Literal["none", "fp16", "int8", "topk"] = "none"
    """Half precision, 8 bits with one scale per tensor, or the largest entries alone."""
    topk_fraction: float = Field(0.1, gt=0, le=1)
    """`topk`: share of entries that are sent."""
    error_feedback: bool = True
    """A client adds what compression lost to its next update (Seide et al., 2014)."""


class NoiseConfig(Section):
    """Clients whose training data is spoilt, to measure robustness."""

    clients: float = Field(0.0, ge=0, le=1)
    """Share of clients that are spoilt, drawn with the split's seed."""
    labels: float = Field(0.0, ge=0, le=1)
    """Share of these clients' training labels replaced by another class."""
    images: Literal["none", "gaussian", "blur", "contrast", "occlusion"] = "none"
    """Corruption of their training images (of their features: `gaussian` only)."""
    severity: float = Field(0.5, gt=0, le=1)
    """From barely visible to hardly recognisable."""

    @property
    def active(self) -> bool:
        """Whether anything is spoilt at all."""
        return self.clients > 0 and (self.labels > 0 or self.images != "none")


class EngineConfig(Section):
    """How groups of clients are computed; `group_size` and `threads` belong to a run's identity."""

    backend: Literal["ray", "local"] = "ray"
    group_size: Annotated[int, Field(gt=0)] | Auto = "auto"
    """Clients trained together on one leading axis; auto: a quarter of the cohort, 2 to 10."""
    threads: int = Field(1, gt=0)
    """Torch threads of every process that computes results."""


class ResourcesConfig(Section):
    """What one run may hold on the cluster.

    It changes results in one case only: `engine.group_size: auto` is at most `clients_per_actor`.
    """

    gpus_per_client: float | Auto = "auto"
    """GPU fraction of one client actor: 0, in (0, 1], or a whole number; auto: 0 without GPUs."""
    cpus_per_client: float = Field(1.0, gt=0)
    clients_per_actor: int | Auto = "auto"
    """Simulated clients hosted by one actor; 1 gives every client its own actor."""
    num_actors: int | Auto = "auto"
    gpu_memory_bytes_per_client: int | None = Field(None, gt=0)
    """Measured need of one client actor; over-commit is refused when given."""

    @model_validator(mode="after")
    def _fraction(self) -> ResourcesConfig:
        gpus = self.gpus_per_client
        if gpus != "auto" and (gpus < 0 or (gpus > 1 and not float(gpus).is_integer())):
            raise ValueError(
                f"gpus_per_client is {gpus:g}: use 0, a fraction up to 1, or a whole number of GPUs"
            )
        for name in ("clients_per_actor", "num_actors"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"{name} is {value}: use 'auto' or at least 1")
        return self


class FailuresConfig(Section):
    """What happens when a simulated client fails."""

    policy: Literal["raise", "retry", "drop"] = "raise"
    retries: int = Field(1, ge=0)
    quorum: float = Field(0.5, gt=0, le=1)
    """Least share of a cohort that must succeed under `retry` and `drop`."""
    deadline_s: float = Field(3600.0, gt=0)
    """Longest wait for one round's clients."""


class EvaluationConfig(Section):
    """What is measured, and on which held-out data choices are made."""

    holdout_fraction: float = Field(0.2, ge=0, lt=1)
    """Part of every client's samples never trained on; hyper-parameters are chosen on it."""
    client_metrics: bool = True
    """Loss and accuracy of every sampled client before and after its local training."""
    set_quality: bool = False
    """Measure the images that a server makes in a round as the generated ones are, with
    `models.clip`: fidelity, coverage, whether they show their class. All data is encoded once."""
    personal: bool = True
    """Accuracy of the served and of each client's own model on its held-out samples, at the end."""
    predictions: bool = True
    """Keep per-sample test predictions of the last round."""
    batch_size: int = Field(1024, gt=0)


class ReportConfig(Section):
    """How results are compared."""

    reference_method: str | None = None
    targets: tuple[float, ...] = Field((0.5, 0.9), strict=False)
    """Shares of (ceiling - zero-shot) whose cost is reported."""
