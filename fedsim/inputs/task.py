"""The task as methods see it: tensors over the shared arrays, without a copy."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.errors import ConfigError
from fedsim.inputs.run_inputs import RunInputs
from fedsim.methods.base import Labelled, Method, Task
from fedsim.models.clip import Clip, load_clip
from fedsim.models.image_arrays import to_unit_range
from fedsim.seeding import numpy_rng

_PUBLIC_SHOTS_LIMIT = 4
"""CoOp's validation protocol (Zhou et al., 2022): at most 4 labelled images per class."""


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over a read-only array, sharing its memory. It must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def make_task(
    config: MethodConfig,
    data: RunInputs,
    method: type[Method],
    device: torch.device,
    server: bool,
) -> Task:
    """The task for one role: clients see neither synthetic nor public data."""
    synthetic = public = None
    images = method.inputs == "images"
    if server and data.synthetic:
        inputs = data.synthetic["fitted" if images else "inputs"]
        synthetic = _labelled(inputs, data.synthetic["labels"], device)
    if server and method.needs_public(config):
        labels = np.asarray(data.arrays["val_labels"])
        rows = public_rows(labels, config.cache.images_per_class, config.partition_seed)
        public = _labelled(data.arrays["val_inputs"][rows], labels[rows], device)
    text = class_embeddings(data, config.data.prototype_shots, config.partition_seed)
    load = None
    if data.meta["visual_bytes"]:
        assert config.models.clip is not None
        load = functools.partial(_load_once, config.models.clip, str(device))
    shape = data.arrays["train_inputs"].shape[1:]
    return Task(
        config=config,
        classnames=tuple(data.meta["classnames"]),
        embed_dim=data.meta["embed_dim"],
        logit_scale=data.meta["logit_scale"],
        device=device,
        text_features=None if text is None else text.to(device),
        synthetic=synthetic,
        public=public,
        load_clip=load,
        image_shape=(shape[0], shape[1], shape[2]) if images else None,
        prepare=_preparation(method, load),
    )


def _preparation(
    method: type[Method], load_clip: Callable[[], Clip] | None
) -> Callable[[Tensor], Tensor]:
    """Maps stored inputs to model inputs: pixels as the encoder or the network takes them."""
    if method.inputs == "images":
        return to_unit_range
    if method.inputs == "pixels" and load_clip is not None:
        return lambda x: load_clip().normalise(x)
    return lambda x: x


def public_rows(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of a few public labelled samples of the validation split, sorted by class."""
    rng = numpy_rng(seed, "public")
    shots = min(shots, _PUBLIC_SHOTS_LIMIT)
    rows = [
        rng.permutation(np.flatnonzero(labels == c))[:shots] for c in range(int(labels.max()) + 1)
    ]
    return np.concatenate(rows)


def check_text(task: Task) -> None:
    """Refuse features that come with neither text features nor prototypes."""
    if task.image_shape is None and task.text_features is None:
        raise ConfigError(
            f"methods.{task.config.method}: the features of {task.config.data.name!r} come without "
            f"text features: add text_features (num_classes, d) to the file, or set "
            f"data.prototype_shots"
        )


def class_embeddings(data: RunInputs, prototype_shots: int | None, seed: int) -> Tensor | None:
    """Unit rows `(num_classes, d)`: text features, or class means of public labelled features.

    The means are public knowledge: every method starts from them, as it would from text.

    Args:
        data: The run's arrays.
        prototype_shots: Labelled val samples of each class that make its mean, or None.
        seed: These samples are drawn with it.
    """
    if "text_features" in data.arrays:
        return as_tensor(data.arrays["text_features"])
    if prototype_shots is None or data.arrays["val_inputs"].ndim != 2:  # images have no means
        return None
    labels = np.asarray(data.arrays["val_labels"])
    rows = public_rows(labels, prototype_shots, seed)
    one_hot = F.one_hot(as_tensor(labels[rows]), len(data.meta["classnames"])).float()
    counts = one_hot.sum(0)
    if not counts.all():
        missing = [n for n, c in zip(data.meta["classnames"], counts, strict=True) if not c]
        raise ConfigError(
            f"data.prototype_shots needs a val sample of every class; {missing[0]!r} has none: use "
            f"a larger data.val_fraction"
        )
    features = as_tensor(np.asarray(data.arrays["val_inputs"])[rows])
    return F.normalize(one_hot.T @ features, dim=-1)


def _labelled(inputs: np.ndarray, labels: np.ndarray, device: torch.device) -> Labelled:
    return Labelled(as_tensor(inputs).to(device), as_tensor(labels).to(device))


@functools.lru_cache(maxsize=1)
def _load_once(spec: str, device: str) -> Clip:
    return load_clip(spec, device=device)
