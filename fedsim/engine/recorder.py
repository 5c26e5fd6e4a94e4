"""Rows of a run that need no model: its row in `runs`, events, its clients, generated sets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from fedsim.config import Experiment
from fedsim.data.noise import num_wrong
from fedsim.engine.sinks import Sinks
from fedsim.inputs.measured_sets import RoundQuality, nearest_real, quality_rows
from fedsim.inputs.run_inputs import RunInputs
from fedsim.methods.base import Made, Method, Task
from fedsim.process import describe_machine


class Recorder:
    """Turns what happened into rows. Generated images are measured on `device`."""

    def __init__(
        self, config: Experiment, sinks: Sinks, data: RunInputs, device: torch.device
    ) -> None:
        self.config, self.sinks, self.data = config, sinks, data
        self._quality = RoundQuality(config.models.clip, data.measured, device)

    def describe(self) -> None:
        """Columns of `runs` about the data."""
        partition = self.data.holdings.partition
        statistics = partition.statistics
        self.sinks.update_run(
            dataset=self.data.meta["dataset"],
            num_clients=partition.num_clients,
            partition_total_variation=statistics.total_variation,
            partition_effective_classes=statistics.effective_classes,
            partition_size_gini=statistics.size_gini,
            synthetic_set=self.data.synthetic_address,
            inputs=self.data.address,
        )

    def begin(self, task: Task) -> None:
        """Rows before round 1: every client's data, and the generated set."""
        self._partition()
        self._noise()
        self._synthetic(task)

    def _partition(self) -> None:
        """Round 0 of `clients`: every client shown and its data; a repair is an event."""
        partition = self.data.holdings.partition
        for text in self.data.meta["notes"]:
            self.event("data", text, 0)
        for text in partition.log:
            self.event("partition", text, 0)
        rows: list[dict[str, Any]] = [
            {
                "round": 0,
                "client_id": client,
                "num_samples": int(counts.sum()),
                "label_counts": counts.tolist(),
                "status": "idle",
            }
            for client, counts in enumerate(partition.label_counts)
        ]
        if "train_domains" in self.data.arrays:
            domains = np.asarray(self.data.arrays["train_domains"])
            for row in rows:
                held = partition.indices[row["client_id"]]
                row["domain"] = domain_text(domains[held], self.data.meta["domain_names"])
        self.sinks.append("clients", rows)

    def _noise(self) -> None:
        """One event for every client whose training data is spoilt."""
        noise, split = self.config.noise, self.data.holdings
        for client in split.spoilt:
            count = len(split.fit[client])
            text = f"{num_wrong(noise.labels, count)} of {count} training labels are wrong"
            if noise.images != "none":
                text += f"; all inputs are corrupted: {noise.images}, severity {noise.severity:g}"
            self.event("noise", text, 0, client)

    def _synthetic(self, task: Task) -> None:
        """The generated set, and its quality in the frozen encoder's space."""
        made, name = self.data.synthetic, self.data.synthetic_address
        if name is not None:
            self.sinks.save_images(name, made["images"], made["labels"], task.classnames)
        if task.synthetic is not None:
            rows = quality_rows(self.config.cache, self.data, task.text_features)
            self.sinks.append("synthetic", rows)
        if name is not None and task.text_features is not None:
            nearest = nearest_real(self.data)
            if nearest is not None:
                self.sinks.save_nearest(name, self.data.address, nearest)

    def made(self, made: Made | None, round: int) -> None:
        """Images and rows that the server made in a round."""
        if made is None:
            return
        if made.images is not None:
            images = made.images.inputs.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
            of_classes, clients = made.images.labels.cpu().numpy(), made.clients.cpu().numpy()
            names = self.data.meta["classnames"]
            self.sinks.save_round_images(round, images, of_classes, names, clients)
        rows = [{"round": round, **row} for row in made.rows]
        for row in rows:
            if (client := row.get("client_id")) is not None:  # the server may not know this
                labels = self.data.observed_labels[self.data.holdings.fit[client]]
                row["local_classes"] = len(np.unique(labels))
        if made.images is not None and self.config.evaluation.set_quality:
            found = self._quality(made.images)
            if len(rows) == 1 and rows[0].get("client_id") is None:
                rows[0] |= found
            else:  # of all clients' sets together
                rows.append({"round": round, **found})
        self.sinks.append("synthetic", rows)
        for kind, message, client in made.events:
            self.event(kind, message, round, client if client >= 0 else None)

    def event(
        self,
        kind: str,
        message: str,
        round: int,
        client_id: int | None = None,
        node: str | None = None,
    ) -> None:
        """One row of `events`."""
        row = {"time": now(), "round": round, "kind": kind, "message": message}
        self.sinks.append("events", [row | {"client_id": client_id, "node": node}])


def domain_text(domains: np.ndarray, names: Sequence[str]) -> str:
    """The domains of a client's samples, the most frequent first.

    >>> domain_text(np.array([1, 0, 1]), ["photo", "sketch"])
    'sketch, photo'
    """
    counts = np.bincount(domains, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    return ", ".join(names[domain] for domain in order if counts[domain])


def about_run(config: Experiment, method: type[Method], device: torch.device) -> dict[str, Any]:
    """Columns of `runs` that are known before anything is loaded."""
    return {
        "study": config.study,
        "method": config.method,
        "dataset": config.data.name,
        "pooled": method.pooled,
        "zero_shot": method.zero_shot,
        "partition": config.partition.label,
        "partition_scheme": config.partition.scheme,
        "dirichlet_alpha": config.partition.given().get("dirichlet_alpha"),
        "num_clients": config.partition.num_clients,
        "seed": config.seed,
        "phase": config.phase,
        "cache_init": config.cache.init if "cache" in method.sections else None,
        "num_rounds": method.num_rounds(config.for_method()),
        "status": "running",
        "error": None,
        "started_at": now(),
        "backend": config.engine.backend,
        "device": device.type,
        **describe_machine(),
    }


def now() -> datetime:
    """The time of day, UTC."""
    return datetime.now(UTC)
