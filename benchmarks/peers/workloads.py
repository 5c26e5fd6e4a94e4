"""Writes the workloads into a folder, so that every runner takes the very same steps.

    FOLDER/<kind>/data.npz          what fedsim reads
    FOLDER/<kind>/x.npy, y.npy      the training samples as fedsim hands them to its clients
    FOLDER/<name>/study.yaml        the workload as a study of fedsim's
    FOLDER/<name>/start.npz         initial weights, and what else the model is made of
    FOLDER/<name>/schedule.npz      `cohorts` `(rounds, cohort)`; `rows`, for every participation in
                                    this order all its epochs' rows of x in batch order, one after
                                    the other; `offsets` where each begins
    FOLDER/<name>/spec.json         all of `Spec`, the model's constants, and `digest`

Partition, cohorts, batch order and weights are fedsim's own. The runners of the peers need NumPy
and torch to read them (`benchmarks.peers.work`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.peers import data
from benchmarks.peers.specs import Spec
from fedsim.config import Experiment
from fedsim.config.study_file import load_study
from fedsim.data.from_config import Holdings
from fedsim.engine.batching import Group, make_batches
from fedsim.engine.schedule import sample_cohort
from fedsim.inputs.prepare import prepare
from fedsim.inputs.run_inputs import RunInputs
from fedsim.inputs.task import as_tensor, make_task
from fedsim.methods import METHODS, build_method, method_class
from fedsim.seeding import torch_rng

METHOD_FILE = Path(__file__).with_name("methods.py")
RATIO, SHARPNESS = 1.0, 5.5


def write(spec: Spec, folder: Path) -> Path:
    """Write one workload below `folder`; where it is then."""
    place, shared = folder / spec.name, folder / spec.kind
    for made in (place, shared):
        made.mkdir(parents=True, exist_ok=True)
    np.savez(shared / "data.npz", **_arrays(spec))
    (place / "study.yaml").write_text(yaml.safe_dump(_study(spec, shared), sort_keys=False))
    config = load_study(place / "study.yaml").experiments(METHODS)[0]
    cls, cpu = method_class(config.use), torch.device("cpu")
    prepared = prepare(config, cls, cpu, synthetic=False)
    task = make_task(config.for_method(), prepared, cls, cpu, server=True)
    state = build_method(task.config, task).setup(task, torch_rng(config.train_seed, "setup"))
    names = ("keys", "text") if spec.kind == "cache" else tuple(state)
    start = {name: state[name].numpy() for name in names}

    inputs, labels = prepared.local()
    plan = schedule(config, prepared.holdings, prepared)
    np.save(shared / "x.npy", inputs)
    np.save(shared / "y.npy", labels)
    np.savez(place / "start.npz", **start)
    np.savez(place / "schedule.npz", **plan)
    model = {"scale": task.logit_scale, "ratio": RATIO, "sharpness": SHARPNESS}
    digest = _digest(inputs, labels, *start.values(), *plan.values())
    found = {**_plain(spec), "data": spec.kind, "model": model, "digest": digest}
    (place / "spec.json").write_text(json.dumps(found, indent=1))
    return place


def schedule(config: Experiment, split: Holdings, prepared: RunInputs) -> dict[str, np.ndarray]:
    """Cohorts of all rounds, and what each of their clients steps on, in order."""
    inputs, labels = map(as_tensor, prepared.local())
    cohorts, rows, offsets = [], [], [0]
    for round in range(1, config.train.rounds + 1):
        cohort = sample_cohort(
            len(split.fit), config.cohort_size, seed=config.train_seed, round=round
        )
        cohorts.append(cohort)
        for client in cohort:
            alone = Group(0, (client,), (split.fit[client],))
            seed = config.train_seed
            batches = make_batches(alone, inputs, labels, config.train, seed, round)
            steps = [step[0, mask[0]].numpy() for step, mask in batches.steps]
            rows += steps
            offsets.append(offsets[-1] + sum(map(len, steps)))
    return {
        "cohorts": np.array(cohorts),
        "rows": np.concatenate(rows),
        "offsets": np.array(offsets),
    }


def _arrays(spec: Spec) -> data.Arrays:
    if spec.kind == "cnn":
        return data.images(spec.samples)
    return data.features(spec.clients, spec.dim, spec.classes, spec.smallest, spec.largest)


def _study(spec: Spec, shared: Path) -> dict[str, Any]:
    """What a user of fedsim would write; only what is measured anyway is switched off."""
    tree: dict[str, Any] = {
        "study": spec.name,
        "data": {"name": str(shared / "data.npz"), "val_fraction": 0.0},
        "models": {"clip": None, "generator": None},
        "partition": {"num_clients": spec.clients, "scheme": "natural"},
        "train": {
            "rounds": spec.rounds,
            "participation": spec.cohort / spec.clients,
            "local_epochs": spec.epochs,
            "batch_size": spec.batch,
            "optimizer": spec.optimizer,
            "lr": spec.lr,
        },
        "evaluation": {
            "holdout_fraction": 0.0,
            "client_metrics": False,
            "personal": False,
            "predictions": False,
        },
    }
    if spec.kind == "cnn":
        tree["partition"] |= {
            "scheme": "dirichlet_label",
            "dirichlet_alpha": 0.1,
            "min_samples": 4,
        }
        method = "NoOp" if spec.noop else "CnnFedAvg"
        return tree | {"methods": {"fedsim": {"use": f"{METHOD_FILE}:{method}"}}}
    tree["cache"] = {
        "init": "random",
        "images_per_class": spec.shots,
        "residual_ratio": RATIO,
        "sharpness": SHARPNESS,
        "form": "dual" if spec.dual else "direct",
    }
    return tree | {"methods": {"cache_random": {"use": "cachefl"}}}


def _plain(spec: Spec) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(spec)))


def _digest(*arrays: np.ndarray) -> str:
    whole = hashlib.blake2b(digest_size=8)
    for array in arrays:
        whole.update(np.ascontiguousarray(array))
    return whole.hexdigest()
