"""One experiment: every setting of one run, and what follows from it.

`fedsim.config.study_file` turns a YAML file into experiments. Imports nothing heavy: the command
line validates before torch or Ray are loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from fedsim.config import sections
from fedsim.config.base import Section
from fedsim.config.chosen import Chosen
from fedsim.config.distill import DistillConfig
from fedsim.config.families import UPDATE_STEPS
from fedsim.config.method import MethodConfig
from fedsim.config.tree import flatten


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
    """Where fedsim was started: relative paths of data, models and methods begin there."""
    phase: Literal["final", "tune"] = "final"
    seed: int = Field(0, ge=0)
    data: sections.DataConfig = sections.DataConfig()
    partition: sections.PartitionConfig = Field(
        default_factory=lambda: sections.PartitionConfig(scheme="iid")
    )
    models: sections.ModelsConfig = Field(default_factory=sections.ModelsConfig)
    synthetic: sections.SyntheticConfig = sections.SyntheticConfig()
    cache: sections.CacheConfig = sections.CacheConfig()
    distill: DistillConfig = Field(default_factory=DistillConfig)
    train: sections.TrainConfig = sections.TrainConfig()
    server: sections.ServerConfig = Field(default_factory=sections.ServerConfig)
    wire: sections.WireConfig = sections.WireConfig()
    noise: sections.NoiseConfig = sections.NoiseConfig()
    engine: sections.EngineConfig = sections.EngineConfig()
    resources: sections.ResourcesConfig = sections.ResourcesConfig()
    failures: sections.FailuresConfig = sections.FailuresConfig()
    evaluation: sections.EvaluationConfig = sections.EvaluationConfig()
    report: sections.ReportConfig = sections.ReportConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.phase == "tune" and self.evaluation.holdout_fraction == 0:
            raise ValueError(
                "tuning chooses on held-out client data: set evaluation.holdout_fraction above 0"
            )
        if self.train.cohort_size is not None and self.train.participation != 1:
            raise ValueError("train.cohort_size and train.participation: set one of the two")
        if (self.train.cohort_size or 0) > self.partition.num_clients:
            raise ValueError(
                f"train.cohort_size is {self.train.cohort_size}, but partition.num_clients is "
                f"{self.partition.num_clients}"
            )
        if self.noise.active and self.partition.shares_samples:
            raise ValueError(
                f"noise spoils the samples of some clients, and under partition.scheme "
                f"{self.partition.scheme!r} other clients hold them too: choose another scheme, or "
                f"no noise"
            )
        if self.cache.form == "dual" and self.train.optimizer != "sgd":
            raise ValueError(
                f"cache.form is dual, which works with SGD alone, and train.optimizer is "
                f"{self.train.optimizer!r}: set train.optimizer to sgd, or cache.form to direct"
            )
        if self.cache.form == "dual" and self.cache.trainable != "keys":
            raise ValueError(
                f"cache.form is dual, which trains keys alone: set cache.trainable to keys (it is "
                f"{self.cache.trainable!r}), or cache.form to direct"
            )
        return self

    def resolved(self) -> Experiment:
        """The same experiment with all that follows from the configuration alone settled.

        `engine.group_size` gets a number, and options that the partition's scheme does not read
        (a study may share one `dirichlet_alpha` among its partitions) are left out.
        """
        size, unread = self.engine.group_size, self.partition.unread()
        if size != "auto" and not unread:
            return self
        if size == "auto":
            size = min(10, max(2, math.ceil(self.cohort_size / 4)))
            hosted = self.resources.clients_per_actor
            size = size if hosted == "auto" else min(size, hosted)
        engine = self.engine.model_copy(update={"group_size": size})
        return self.model_copy(
            update={"engine": engine, "partition": self.partition.without(unread)}
        )

    @property
    def group_size(self) -> int:
        """`engine.group_size` of a resolved experiment."""
        assert self.engine.group_size != "auto", "resolve the experiment first"
        return self.engine.group_size

    @property
    def partition_seed(self) -> int:
        """Seed of the partition, of hold-outs and of few-shot draws."""
        return self.seed if self.partition.seed is None else self.partition.seed

    def for_partition(self) -> dict[str, Any]:
        """The settings of `fedsim.data.from_config.partition_clients`."""
        return {
            "partition": self.partition,
            "seed": self.partition_seed,
            "holdout_fraction": self.evaluation.holdout_fraction,
            "noise": self.noise,
        }

    @property
    def train_seed(self) -> int:
        """Seed of cohorts, batches, initial weights and generated images."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def cohort_size(self) -> int:
        """Clients sampled per round."""
        size = self.train.cohort_size
        return size or max(1, round(self.train.participation * self.partition.num_clients))

    def for_method(self) -> MethodConfig:
        """The part of the experiment that its method reads."""
        names = [field.name for field in dataclasses.fields(MethodConfig)]
        return MethodConfig(**{name: getattr(self, name) for name in names})

    def enter(self) -> None:
        """Change to `working_dir`, where relative paths begin, if this machine has that folder."""
        if Path(self.working_dir).is_dir():
            os.chdir(self.working_dir)

    def flat(self) -> dict[str, Any]:
        """The whole configuration as `{"train.lr": 0.01, ...}`."""
        return dict(flatten(self.model_dump(mode="json")))

    def _from_outside(self) -> dict[str, Any]:
        """Parts and update steps outside the package: where they are, and the hash of a file."""
        chosen: dict[str, Chosen] = {
            "partition": self.partition,
            "models.classifier": self.models.classifier,
            "distill": self.distill,
            "server": self.server,
        }
        found = {name: section.family[section.part] for name, section in chosen.items()}
        found |= {f"step {name}": where for name, where in UPDATE_STEPS.items()}
        foreign = {k: v for k, v in found.items() if not v.startswith("fedsim.")}
        parts = {name: _digest(where) or where for name, where in foreign.items()}
        return {"parts": parts} if parts else {}

    @property
    def run_id(self) -> str:
        """Hash of everything that can change a result: not where or on how many actors it ran."""
        payload = self.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        for name in _ADDED_LATER:
            block, _, key = name.partition(".")
            default = _defaults()[block]
            if not key and payload[block] == default:
                payload.pop(block)
            elif key and block in payload and payload[block].get(key) == default.get(key):
                payload[block].pop(key, None)
        name = self.use.partition(":")[2]
        if (digest := _digest(self.use)) is not None:
            payload["use"] = [digest, name]
        if self.distill.is_gan and (digest := _digest(self.distill.prior)) is not None:
            payload["prior"] = digest
        payload |= self._from_outside()
        text = json.dumps(payload, sort_keys=True)
        return f"{self.method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


_WITHOUT_EFFECT: dict[str, Any] = {
    "study": True,
    "output": True,
    "working_dir": True,
    "resources": True,
    "report": True,
    "engine": {"backend"},
    "failures": {"deadline_s"},
}
"""Settings that are not part of a run's identity; `True` stands for a whole block."""

_ADDED_LATER = (
    "cache.form",
    "data.max_test_samples",
    "distill",
    "distill.generator_lr",
    "evaluation.set_quality",
    "models.classifier",
    "partition.samples_per_client",
    "train.augment_flip",
    "train.augment_views",
    "train.cohort_size",
)
"""Blocks and settings that came after the first runs. They leave no trace in a run's name while
they are at their defaults, so that older runs keep their names."""


def _digest(use: str) -> str | None:
    """Hash of the content of `FILE.py` or `FILE.py:NAME`; None if there is no such file."""
    file = Path(use.partition(":")[0]).expanduser()
    if file.suffix != ".py" or not file.is_file():
        return None
    stat = file.stat()
    return _content(file.resolve(), stat.st_mtime_ns, stat.st_size)


@functools.cache
def _defaults() -> dict[str, dict[str, Any]]:
    """Dumps of the blocks of `_ADDED_LATER` in which nothing is set."""
    fields = {name.partition(".")[0]: None for name in _ADDED_LATER}
    blocks = {
        name: Experiment.model_fields[name].get_default(call_default_factory=True)
        for name in fields
    }
    return {name: block.model_dump(mode="json") for name, block in blocks.items()}


@functools.lru_cache(maxsize=256)
def _content(file: Path, mtime_ns: int, size: int) -> str:
    """Hash of a file's content, read once for as long as it looks the same."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
