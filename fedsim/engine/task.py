"""The task as methods see it: tensors over the shared arrays, without a copy."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.config import Experiment
from fedsim.engine.prepare import TaskData, public_rows
from fedsim.methods.base import Labelled, Method, Task
from fedsim.models.clip import Clip, load_clip


def settle_numerics(threads: int) -> None:
    """Fix what could change the bits of a result: threads, and the choice between kernels."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # Attention's inference-only kernel has neither a gradient nor a batching rule.
    torch.backends.mha.set_fastpath_enabled(False)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over a read-only array, sharing its memory. Nobody writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def make_task(
    config: Experiment,
    data: TaskData,
    method: type[Method],
    device: torch.device,
    server: bool,
) -> Task:
    """The task for one role: clients see neither synthetic nor public data."""
    synthetic = public = None
    if server and data.synthetic:
        synthetic = _labelled(data.synthetic["inputs"], data.synthetic["labels"], device)
    if server and method.needs_public(config):
        labels = np.asarray(data.arrays["val_labels"])
        rows = public_rows(labels, config.cache.images_per_class, config.partition_seed)
        public = _labelled(data.arrays["val_inputs"][rows], labels[rows], device)
    text = data.arrays.get("text_features")
    return Task(
        config=config,
        classnames=tuple(data.meta["classnames"]),
        embed_dim=data.meta["embed_dim"],
        logit_scale=data.meta["logit_scale"],
        device=device,
        text_features=None if text is None else as_tensor(text).to(device),
        synthetic=synthetic,
        public=public,
        load_clip=_clip_loader(config.models.clip, device) if data.meta["visual_bytes"] else None,
    )


def _labelled(inputs: np.ndarray, labels: np.ndarray, device: torch.device) -> Labelled:
    return Labelled(as_tensor(inputs).to(device), as_tensor(labels).to(device))


def _clip_loader(spec: str | None, device: torch.device) -> Callable[[], Clip]:
    assert spec is not None
    return functools.partial(_load_once, spec, str(device))


@functools.lru_cache(maxsize=1)
def _load_once(spec: str, device: str) -> Clip:
    return load_clip(spec, device=device)
