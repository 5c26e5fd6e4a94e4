"""pfl-research's SimulatedBackend, one process with two threads: python -m ... WORK OUT."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.peers.stopwatch import Stopwatch
from benchmarks.peers.work import ADAMW, Work


class Model(nn.Module):
    """A network with its loss, as pfl wants them together."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Averaging(FederatedAveraging):
    """Never evaluates: round 0 and the last one would always be."""

    def get_next_central_contexts(self, *args: Any, **kwargs: Any) -> Any:
        contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
        if contexts:
            contexts = tuple(dataclasses.replace(c, do_evaluation=False) for c in contexts)
        return contexts, model, metrics


class NoOp(Averaging):
    """Clients that return what they were sent."""

    def train_one_user(self, initial: Any, model: Any, user: Any, context: Any) -> Any:
        return model.get_model_difference(initial), Metrics()


class Ends(TrainingProcessCallback):
    """Notes the end of every round."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def after_central_iteration(self, *args: Any, **kwargs: Any) -> tuple[bool, Metrics]:
        self._watch.round_done()
        return False, Metrics()


def main(folder: str, out: str) -> None:
    watch = Stopwatch()
    torch.set_num_threads(2)
    work = Work(folder)
    spec, cohorts = work.spec, work.cohorts
    if spec["epochs"] != 1:
        raise SystemExit("pfl takes the same order in every epoch: it can run one only")
    net = Model(work.model())
    local = torch.optim.SGD
    if spec["optimizer"] == "adamw":
        local = partial(torch.optim.AdamW, **ADAMW)
    model = PyTorchModel(net, local, torch.optim.SGD(net.parameters(), lr=1.0))
    turns = itertools.product(range(len(cohorts)), range(len(cohorts[0])))

    def shard(turn: tuple[int, int]) -> Dataset:
        [(x, y)] = work.samples(*turn)
        return Dataset([x, y], user_id=str(cohorts[turn[0]][turn[1]]))

    data = FederatedDataset(shard, lambda: next(turns))
    algorithm = NoOp() if spec["noop"] else Averaging()
    algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=len(cohorts),
            evaluation_frequency=10**9,
            train_cohort_size=len(cohorts[0]),
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=spec["batch"], local_num_epochs=1, local_learning_rate=spec["lr"]
        ),
        NNEvalHyperParams(local_batch_size=spec["batch"]),
        callbacks=[Ends(watch)],
        send_metrics_to_platform=False,
    )
    weights = {k: v.numpy() for k, v in net.net.state_dict().items()}
    watch.emit(weights, Path(out), "pfl")


if __name__ == "__main__":
    main(*sys.argv[1:])
