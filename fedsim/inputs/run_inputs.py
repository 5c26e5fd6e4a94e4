"""The arrays of one run, as its round loop, its clients and its tables read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fedsim.data.from_config import DataSource, Holdings
from fedsim.inputs.augmented_views import VIEWS
from fedsim.inputs.noisy_clients import OBSERVED, split_of
from fedsim.methods.base import Method
from fedsim.storage.array_cache import Arrays, InputStep


@dataclass(frozen=True, eq=False)
class RunInputs:
    """Plain arrays of one run, shared by all processes of a node.

    Attributes:
        arrays: `<split>_inputs`, `<split>_labels` for train, val and test; `train_clients`,
            `train_domains` and `test_domains` where the data has them; `text_features`
            `(num_classes, d)`. Under `noise`, `train_inputs` of spoilt clients are corrupted, and
            `train_labels_observed` are what clients train on; `train_labels` are always the true
            ones. Under `train.augment_views`, `train_views` (`fedsim.inputs.augmented_views`).
        meta: `classnames`, `domain_names`, `embed_dim`, `logit_scale`, `visual_bytes` and
            `text_bytes` (of the two encoders; 0 without one), `fingerprint`, `dataset`.
        address: Name of the entry that the last of `train_inputs` and observed labels come from.
        source: The data set.
        split_by: How training rows are shared out: settings of `partition_clients`.
        synthetic: Arrays of `fedsim.inputs.synthetic_set.synthetic_step`, or empty; for methods
            on `images` also `fitted`, the images at the data's size and channels.
        synthetic_address: Name of the generated set, or None.
        measured: Steps to the features that sets made in rounds are compared with.
        keys: Of all entries that the arrays come from.
    """

    arrays: Arrays
    meta: dict[str, Any]
    address: str
    source: DataSource
    split_by: Mapping[str, Any]
    synthetic: Arrays = field(default_factory=dict)
    synthetic_address: str | None = None
    measured: tuple[InputStep, ...] = ()
    keys: tuple[dict[str, Any], ...] = ()

    @cached_property
    def holdings(self) -> Holdings:
        """The rows of every client."""
        return split_of(self.arrays, **self.split_by)

    def local(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels that clients train on: V consecutive rows for each training sample."""
        labels = self.observed_labels
        if VIEWS not in self.arrays:
            return self.arrays["train_inputs"], labels
        views = self.arrays[VIEWS]
        return views, np.repeat(labels, len(views) // len(labels))

    @property
    def observed_labels(self) -> np.ndarray:
        """Labels of all training samples, as clients see them."""
        return np.asarray(self.arrays.get(OBSERVED, self.arrays["train_labels"]))

    def frozen_bytes(self, method: type[Method]) -> int:
        """Bytes of the encoders that a client of this method downloads once."""
        return sum(int(self.meta[f"{encoder}_bytes"]) for encoder in method.frozen)
