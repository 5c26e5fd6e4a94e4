"""A written workload as runners without fedsim read it: samples, order, model, local training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.networks import CacheHead, Cnn

ADAMW = {"eps": 1e-4, "weight_decay": 0.0}
"""As fedsim takes AdamW; the rest are torch's defaults."""


class Work:
    """One workload; `spec` holds the fields of `benchmarks.peers.specs.Spec`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.spec: dict[str, Any] = json.loads((self.folder / "spec.json").read_text())
        data = self.folder.parent / self.spec["data"]
        self._x = np.load(data / "x.npy", mmap_mode="r")
        self._y = np.load(data / "y.npy")
        plan = np.load(self.folder / "schedule.npz")
        self._rows, self._offsets = plan["rows"], plan["offsets"]
        self.cohorts: list[list[int]] = plan["cohorts"].tolist()
        """Per round, the clients that take part."""

    def model(self) -> nn.Module:
        """The model with its initial weights."""
        start = {k: torch.from_numpy(v) for k, v in np.load(self.folder / "start.npz").items()}
        if self.spec["kind"] == "cache":
            return CacheHead(start["keys"], start["text"], **self.spec["model"])
        net = Cnn(self.spec["classes"])
        net.load_state_dict(start)
        return net

    def samples(self, round: int, place: int) -> list[tuple[Tensor, Tensor]]:
        """Per local epoch, the samples of a participation in the order in which they are taken.

        Args:
            round: From 0.
            place: Within the round's cohort.
        """
        at = round * len(self.cohorts[0]) + place
        rows = self._rows[self._offsets[at] : self._offsets[at + 1]]
        return [
            (self._read(epoch), torch.from_numpy(self._y[epoch]))
            for epoch in np.split(rows, self.spec["epochs"])
        ]

    def _read(self, rows: np.ndarray) -> Tensor:
        x = torch.from_numpy(self._x[rows])
        return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x

    def optimizer(self, parameters: Any, fused: bool | None = None) -> torch.optim.Optimizer:
        """The local optimiser; `fused` None is torch's default, a plain loop on a CPU."""
        lr = self.spec["lr"]
        if self.spec["optimizer"] == "adamw":
            return torch.optim.AdamW(parameters, lr=lr, fused=fused, **ADAMW)
        return torch.optim.SGD(parameters, lr=lr, fused=fused)

    def train(self, model: nn.Module, round: int, place: int, fused: bool | None = None) -> int:
        """One client's local training, in place; how many samples it has."""
        epochs = self.samples(round, place)
        if not self.spec["noop"]:
            optimizer = self.optimizer(model.parameters(), fused)
            for x, y in _batches(epochs, self.spec["batch"]):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        return len(epochs[0][1])


def _batches(epochs: list[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in epochs:
        yield from zip(x.split(size), y.split(size), strict=True)
