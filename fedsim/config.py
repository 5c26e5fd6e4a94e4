"""One experiment: every setting of one run, typed, frozen and checked.

`fedsim.study` turns a YAML file into experiments. Imports nothing heavy: the command line
validates before torch or Ray are loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]
Scheme = Literal[
    "iid",
    "dirichlet_label",
    "dirichlet_client",
    "dirichlet_balanced",
    "pathological",
    "quantity",
    "domain",
    "natural",
    "longtail",
]


SCHEME_OPTIONS: dict[str, frozenset[str]] = {
    "dirichlet_label": frozenset({"dirichlet_alpha"}),
    "dirichlet_client": frozenset({"dirichlet_alpha"}),
    "dirichlet_balanced": frozenset({"dirichlet_alpha"}),
    "pathological": frozenset({"classes_per_client"}),
    "quantity": frozenset({"dirichlet_alpha", "size_sigma"}),
    "domain": frozenset({"dirichlet_alpha"}),
    "longtail": frozenset({"dirichlet_alpha", "imbalance_factor"}),
}
"""What each partition scheme reads; the others read none of these."""


class Section(BaseModel):
    """A block of the configuration: frozen, typed, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which images or features, and how they are read (see `fedsim.data.datasets.load_dataset`)."""

    name: str = "digits"
    """`digits`, a path (`.npz` file or image folder), or `hf:NAME[:CONFIG]`."""
    path: str | None = None
    """Where the data is, when `name` does not say it."""
    classnames: tuple[str, ...] | None = Field(None, strict=False)
    templates: tuple[str, ...] | None = Field(None, strict=False)
    """Prompt templates with one `{}`; by default the data set's own."""
    image_column: str | None = None
    label_column: str | None = None
    client_column: str | None = None
    domain_column: str | None = None
    domains: bool = False
    """An image folder is `domain/class/` instead of `class/`."""
    test_domain: str | None = None
    """This domain is the test split."""
    image_size: int | None = Field(None, gt=0)
    """Side in pixels for image files of unequal sizes."""
    train_split: str = "train"
    only_text_classes: bool = False
    """Leave out classes without a text feature."""
    shots: int | None = Field(None, gt=0)
    """Training samples per class; null takes all."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    max_train_samples: int | None = Field(None, gt=0)


class PartitionConfig(Section):
    """How the training samples are split over clients (see `fedsim.data.partition`)."""

    scheme: Scheme = "dirichlet_label"
    num_clients: int = Field(10, gt=0)
    dirichlet_alpha: float | None = Field(None, gt=0)
    """Concentration of every Dirichlet draw; small is heterogeneous."""
    classes_per_client: int | None = Field(None, gt=0)
    size_sigma: float | None = Field(None, ge=0)
    """`quantity`: log-normal spread of client sizes; needs no `dirichlet_alpha`."""
    imbalance_factor: float | None = Field(None, ge=1)
    """`longtail`: largest class over smallest class."""
    min_samples: int = Field(2, gt=0)
    seed: int | None = Field(None, ge=0)
    """Seed of the split alone; by default the experiment's seed."""

    @model_validator(mode="after")
    def _needs(self) -> PartitionConfig:
        if self.uses_alpha and self.dirichlet_alpha is None:
            raise ValueError(f"scheme {self.scheme!r} needs partition.dirichlet_alpha")
        if self.scheme == "quantity" and (self.dirichlet_alpha is None) == (
            self.size_sigma is None
        ):
            raise ValueError(
                "scheme 'quantity' needs one of partition.dirichlet_alpha and partition.size_sigma"
            )
        if self.scheme == "pathological" and self.classes_per_client is None:
            raise ValueError("scheme 'pathological' needs partition.classes_per_client")
        if self.scheme == "longtail" and self.imbalance_factor is None:
            raise ValueError("scheme 'longtail' needs partition.imbalance_factor")
        return self

    @property
    def uses_alpha(self) -> bool:
        """Whether the scheme cannot do without `dirichlet_alpha`."""
        return self.scheme.startswith("dirichlet_") or self.scheme == "longtail"

    @property
    def label(self) -> str:
        """Short name in tables and plots, such as `dirichlet_label 0.05`."""
        used = {
            "pathological": self.classes_per_client,
            "quantity": self.dirichlet_alpha if self.size_sigma is None else self.size_sigma,
        }.get(self.scheme, self.dirichlet_alpha if self.uses_alpha else None)
        return self.scheme if used is None else f"{self.scheme} {used:g}"


class ModelsConfig(Section):
    """Frozen encoder and server-side generator."""

    clip: str | None = "tiny-clip"
    """`tiny-clip`, an open_clip `NAME/TAG`, a local folder, or null for precomputed features."""
    generator: str | None = "tiny-diffusion"
    """`tiny-diffusion`, a diffusers pipeline id or a local folder."""
    generator_steps: int | None = Field(None, gt=0)
    generator_guidance: float | None = Field(None, ge=0)
    logit_scale: float | None = Field(None, gt=0)
    """Factor of the text logits; by default the encoder's own (100 for precomputed features)."""


class CacheConfig(Section):
    """The cache model: keys, values and how they weigh against the text classifier."""

    init: Literal["generated", "text", "random", "public_shots"] = "generated"
    """Where the keys come from. Only `generated` is CacheFL."""
    images_per_class: int = Field(16, gt=0)
    """K: keys per class."""
    residual_ratio: float = Field(1.0, ge=0)
    """Weight of the cache logits (Tip-Adapter's alpha)."""
    sharpness: float = Field(5.0, gt=0)
    """How fast affinity falls with distance (Tip-Adapter's beta)."""


class TrainConfig(Section):
    """Rounds and local training, the same words for every method."""

    rounds: int = Field(10, ge=0)
    participation: float = Field(1.0, gt=0, le=1)
    """Share of clients sampled per round, at least one."""
    local_epochs: int = Field(1, gt=0)
    batch_size: int = Field(32, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    seed: int | None = Field(None, ge=0)
    """Seed of cohorts, batches and weights; by default the experiment's seed."""


class EngineConfig(Section):
    """How groups of clients are computed; `group_size` and `threads` belong to a run's identity."""

    backend: Literal["ray", "local"] = "ray"
    group_size: Annotated[int, Field(gt=0)] | Auto = "auto"
    """Clients trained together on one leading axis; auto: a quarter of the cohort, 2 to 10."""
    threads: int = Field(1, gt=0)
    """Torch threads of every process that computes results."""


class ResourcesConfig(Section):
    """What one run may hold on the cluster.

    Never changes results, but for one: `engine.group_size: auto` is at most `clients_per_actor`.
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
    predictions: bool = True
    """Keep per-sample test predictions of the last round."""
    batch_size: int = Field(1024, gt=0)


class ReportConfig(Section):
    """How results are compared."""

    reference_method: str | None = None
    targets: tuple[float, ...] = Field((0.5, 0.9), strict=False)
    """Shares of (ceiling - zero-shot) whose cost is reported."""


class Experiment(Section):
    """One run, fully resolved: what a cell of a study means.

    `method` is its name in tables, `use` the implementation: a name in `fedsim.methods.METHODS`
    or `FILE.py[:CLASS]`.
    """

    study: str
    output: str = "runs"
    method: str
    use: str
    options: dict[str, Any] = {}
    working_dir: str = "."
    """Where fedsim was started: relative paths of data, models and methods are meant from there."""
    phase: Literal["final", "tune"] = "final"
    seed: int = Field(0, ge=0)
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig(scheme="iid")
    models: ModelsConfig = ModelsConfig()
    cache: CacheConfig = CacheConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    resources: ResourcesConfig = ResourcesConfig()
    failures: FailuresConfig = FailuresConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.phase == "tune" and self.evaluation.holdout_fraction == 0:
            raise ValueError(
                "tuning chooses on held-out client data: set evaluation.holdout_fraction above 0"
            )
        if self.method == "cachefl" and self.cache.init != "generated":
            raise ValueError(
                f"cache.init is {self.cache.init!r}, but only a generated cache is called cachefl: "
                f"name this one apart, e.g. 'cache_{self.cache.init}: {{use: cachefl, "
                f"cache.init: {self.cache.init}}}'"
            )
        return self

    def resolved(self) -> Experiment:
        """The same experiment with all that follows from the configuration alone settled.

        `engine.group_size` gets a number, and options that the partition's scheme does not read
        (a study may share one `dirichlet_alpha` among its partitions) are left out.
        """
        size, partition = self.engine.group_size, self.partition
        read = SCHEME_OPTIONS.get(partition.scheme, frozenset())
        unread = {
            option
            for option in frozenset.union(*SCHEME_OPTIONS.values()) - read
            if getattr(partition, option) is not None
        }
        if size != "auto" and not unread:
            return self
        partition = partition.model_copy(update=dict.fromkeys(unread))
        if size == "auto":
            size = min(10, max(2, math.ceil(self.cohort_size / 4)))
            hosted = self.resources.clients_per_actor
            size = size if hosted == "auto" else min(size, hosted)
        engine = self.engine.model_copy(update={"group_size": size})
        return self.model_copy(update={"engine": engine, "partition": partition})

    @property
    def group_size(self) -> int:
        """`engine.group_size` of a resolved experiment."""
        assert self.engine.group_size != "auto", "resolve the experiment first"
        return self.engine.group_size

    @property
    def partition_seed(self) -> int:
        """Seed of the split, of hold-outs and of few-shot draws."""
        return self.seed if self.partition.seed is None else self.partition.seed

    @property
    def train_seed(self) -> int:
        """Seed of cohorts, batches, initial weights and generated images."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def cohort_size(self) -> int:
        """Clients sampled per round."""
        return max(1, round(self.train.participation * self.partition.num_clients))

    def enter(self) -> None:
        """Go where relative paths are meant from, if this machine has that folder."""
        if Path(self.working_dir).is_dir():
            os.chdir(self.working_dir)

    def flat(self) -> dict[str, Any]:
        """The whole configuration as `{"train.lr": 0.01, ...}`."""
        return dict(_flatten(self.model_dump(mode="json")))

    @property
    def run_id(self) -> str:
        """Hash of everything that can change a result: not where or on how many actors it ran."""
        payload = self.model_dump(
            mode="json", exclude={"study", "output", "working_dir", "resources", "report"}
        )
        payload["engine"].pop("backend")
        payload["failures"].pop("deadline_s")
        file = Path(self.use.partition(":")[0])
        if file.suffix == ".py" and file.is_file():  # a method's file is known by its content
            name = self.use.partition(":")[2]
            payload["use"] = [hashlib.sha256(file.read_bytes()).hexdigest(), name]
        text = json.dumps(payload, sort_keys=True)
        return f"{self.method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
