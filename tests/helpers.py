"""Small experiments on precomputed features, and what tests do with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedsim.config import Experiment
from fedsim.config.sections import TrainConfig
from fedsim.config.study_file import parse_study
from fedsim.engine.batching import Group, make_batches
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.collect import ClientPool
from fedsim.engine.local import LocalPool, drive
from fedsim.engine.round import Federation
from fedsim.engine.sinks import Sinks, open_sinks
from fedsim.methods import METHODS
from fedsim.methods.base import Batches, Labelled, Task

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


def feature_arrays(
    num_classes: int = 4, dim: int = 8, per_class: int = 20, seed: int = 0
) -> dict[str, np.ndarray]:
    """Unit features scattered around one text feature per class: train, val and test."""
    rng = np.random.default_rng(seed)

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    centres = rng.normal(size=(num_classes, dim))
    arrays: dict[str, np.ndarray] = {
        "classnames": np.array(CLASSES[:num_classes]),
        "text_features": unit(centres + 0.8 * rng.normal(size=centres.shape)),
    }
    for split, count in (("train", per_class), ("val", 6), ("test", 10)):
        labels = rng.permutation(np.repeat(np.arange(num_classes), count))
        arrays[f"x_{split}"] = unit(centres[labels] + 0.7 * rng.normal(size=(len(labels), dim)))
        arrays[f"y_{split}"] = labels
    return arrays


def write_features(folder: Path, **settings: Any) -> Path:
    """`features.npz` with what `feature_arrays` makes."""
    path = folder / "features.npz"
    np.savez(path, **feature_arrays(**settings))
    return path


def experiment(data: Path | str, method: str = "cache_text", **settings: Any) -> Experiment:
    """A resolved in-process experiment on a file of features; `a__b=1` stands for `a.b: 1`.

    `method="cache_text"` is the cache model started from the text: it needs no generator.
    """
    own: dict[str, Any] = {"use": "cachefl", "cache.init": "text"} if method == "cache_text" else {}
    given = {key.replace("__", "."): value for key, value in settings.items()}
    own |= {key: given.pop(key) for key in ("use", "options") if key in given}
    phase, seed = given.pop("phase", "final"), given.pop("seed", 0)
    tree: dict[str, Any] = {
        "study": "tests",
        "methods": {method: own | given},
        "data": {"name": str(data)},
        "models": {"clip": None, "generator": None, "logit_scale": 10.0},
        "partition": {"scheme": "dirichlet_label", "num_clients": 6, "dirichlet_alpha": 1.0},
        "train": {"rounds": 3, "batch_size": 4, "lr": 0.05, "momentum": 0.9, "local_epochs": 2},
        "engine": {"backend": "local"},
    }
    study = parse_study(tree)
    return study.resolve([(method, {}, seed, phase)], METHODS)[0]


def federation(
    config: Experiment, folder: Path, pool: ClientPool | None = None, sinks: Sinks | None = None
) -> Federation:
    """A run in this process whose tables and checkpoints are in `folder`."""
    checkpoints = CheckpointFolder(folder, config.run_id)
    return Federation(
        config, sinks or open_sinks(folder, config.run_id), checkpoints, pool or LocalPool(config)
    )


def run(
    config: Experiment, folder: Path, pool: ClientPool | None = None, sinks: Sinks | None = None
) -> Path:
    """The whole run; returns the study's folder."""
    drive(federation(config, folder, pool, sinks), lambda row: None)
    return folder


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random rows of length 1."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def tiny_task(config: Experiment, num_classes: int = 4, dim: int = 8, **parts: Any) -> Task:
    """What a method knows, of random features."""
    given: dict[str, Any] = {
        "classnames": CLASSES[:num_classes],
        "embed_dim": dim,
        "logit_scale": 20.0,
        "device": torch.device("cpu"),
        "text_features": unit(num_classes, dim, seed=1),
    }
    return Task(config=config.for_method(), **(given | parts))


def synthetic_set(num_classes: int = 4, dim: int = 8, per_class: int = 3) -> Labelled:
    """A generated set as a method sees it, sorted by class."""
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    return Labelled(unit(num_classes * per_class, dim, seed=2), labels)


def local_data(
    sizes: Sequence[int], num_classes: int = 4, shape: Sequence[int] = (8,), seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, tuple[np.ndarray, ...]]:
    """Inputs, labels and every client's rows, for clients of the given sizes."""
    total = sum(sizes)
    inputs = F.normalize(unit(total, int(np.prod(shape)), seed=seed), dim=-1).view(total, *shape)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(num_classes, (total,), generator=generator)
    rows = np.split(np.arange(total), np.cumsum(sizes)[:-1])
    return inputs, labels, tuple(rows)


def batches_of(
    train: TrainConfig,
    rows: Sequence[np.ndarray],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    clients: Sequence[int] | None = None,
    seed: int = 0,
    round: int = 1,
) -> Batches:
    """The batches of one group; `clients` chooses among `rows` (all of them by default)."""
    ids = tuple(range(len(rows)) if clients is None else clients)
    group = Group(0, ids, tuple(rows[c] for c in ids))
    return make_batches(group, inputs, labels, train, seed, round)


def rngs(batches: Batches) -> list[torch.Generator]:
    """One generator per client."""
    return [torch.Generator().manual_seed(c + 1) for c in batches.client_ids]
