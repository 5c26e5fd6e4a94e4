"""What a run writes down: evaluations, client rows, events, and its row in `runs`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from fedsim.config import Experiment
from fedsim.data.from_config import ClientSplit
from fedsim.data.noise import num_wrong
from fedsim.data.partition.make import Partition
from fedsim.engine.evaluate import Scores, mean_scores, predict, score, spread
from fedsim.engine.sinks import Sinks
from fedsim.errors import ConfigError
from fedsim.inputs.measured_sets import RoundQuality, nearest_real, quality_rows
from fedsim.inputs.run_inputs import RunInputs
from fedsim.inputs.task import as_tensor
from fedsim.methods.base import Made, Method, Predictor, Task
from fedsim.process import describe_machine


class Recorder:
    """Turns what happened into rows.

    Args:
        config: The resolved experiment.
        sinks: What hears the rows.
        data: The run's arrays.
        split: The clients' rows.
        device: Where predictions are computed.
    """

    def __init__(
        self,
        config: Experiment,
        sinks: Sinks,
        data: RunInputs,
        split: ClientSplit,
        device: torch.device,
    ) -> None:
        self.config, self.sinks, self.data, self.device = config, sinks, data, device
        self.served = "test" if config.phase == "final" else "client_holdout"
        arrays = data.arrays
        self._samples: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if config.phase == "final":  # test data is never looked at while choosing settings
            self._samples["test"] = arrays["test_inputs"], np.asarray(arrays["test_labels"])
        self._held, self._held_rows, self._shown = split.held, split.held_rows, split.shown
        held = self._held_rows
        if len(held):
            labels = np.asarray(arrays["train_labels"])[held]
            self._samples["client_holdout"] = arrays["train_inputs"][held], labels
        self._domains = _domains_of(arrays, held)
        self._fit = split.fit
        self._quality = RoundQuality(config.models.clip, data.measured, device)
        if self.served not in self._samples:
            raise ConfigError(
                "tuning needs held-out client data, but every client has too few samples to hold "
                "any out: use fewer clients, or a larger evaluation.holdout_fraction"
            )

    def evaluate(self, models: Sequence[Predictor], round: int, last: bool) -> dict[str, Any]:
        """Score the served model on every held-out split.

        Args:
            models: Stored inputs -> logits; of several models the mean scores are written.
            round: Which round the model belongs to.
            last: Whether to add scores per class and domain, and per-sample predictions.

        Returns:
            `split`, `accuracy` and `loss` for the row of `rounds`.
        """
        found: dict[str, Scores] = {}
        for split, (inputs, labels) in self._samples.items():
            each = [score(self._logits(model, inputs), labels) for model in models]
            scores = found[split] = mean_scores(each)
            self._write_scores(split, scores, labels, round, last)
            correct = [np.asarray(s.predictions == labels) for s in each] if last else []
            if last and split in self._domains:
                self._write_domains(split, np.mean(correct, axis=0), round)
            if last and split == "client_holdout" and self.config.evaluation.personal:
                self._write_clients(correct, round)
        metrics = found[self.served].metrics
        if not math.isfinite(metrics["nll"]):
            self.event("diverged", "the global model predicts NaN or infinite scores", round)
        return {"split": self.served, "accuracy": metrics["accuracy"], "loss": metrics["nll"]}

    def beside(self, name: str, model: Predictor, round: int, last: bool) -> None:
        """Score one more model of the server on every held-out split, under its own name.

        Raises:
            ConfigError: The name is that of the main model or of clients' own.
        """
        if name in ("global", "personal"):
            raise ConfigError(
                f"method {self.config.method!r} calls one of its predictors {name!r}, which is "
                f"what the table evaluations calls its main model: choose another name"
            )
        for split, (inputs, labels) in self._samples.items():
            scores = score(self._logits(model, inputs), labels)
            self._write_scores(split, scores, labels, round, last, name)

    def _write_scores(
        self,
        split: str,
        scores: Scores,
        labels: np.ndarray,
        round: int,
        last: bool,
        model: str = "global",
    ) -> None:
        key = {"round": round, "model": model, "split": split}
        count = len(labels)
        rows: list[dict[str, Any]] = [
            {**key, "scope": "global", "metric": name, "value": value, "num_samples": count}
            for name, value in scores.metrics.items()
        ]
        if last:
            names, counts = self.data.meta["classnames"], np.bincount(labels)
            of_class = {**key, "scope": "class", "metric": "accuracy"}
            rows += [
                {**of_class, "class_name": names[c], "value": v, "num_samples": int(counts[c])}
                for c, v in scores.per_class.items()
            ]
        self.sinks.append("evaluations", rows)
        wanted = self.config.evaluation.predictions and scores.predictions is not None
        if last and split == "test" and wanted and model == "global":
            samples = {"sample": np.arange(count), "label": labels}
            predictions = {"prediction": scores.predictions}
            correct = {"correct": scores.predictions == labels}
            where = {"round": round, "split": split}
            self.sinks.append("predictions", where | samples | predictions | correct)

    def _write_domains(self, split: str, correct: np.ndarray, round: int) -> None:
        """Accuracy on every domain of a split; `correct` is the share of models that are right."""
        key = {"round": round, "model": "global", "split": split}
        of_domain = {**key, "scope": "domain", "metric": "accuracy"}
        domains = self._domains[split]
        rows = [
            {
                **of_domain,
                "domain": self.data.meta["domain_names"][domain],
                "value": float(correct[domains == domain].mean()),
                "num_samples": int((domains == domain).sum()),
            }
            for domain in np.unique(domains)
        ]
        self.sinks.append("evaluations", rows)

    def _logits(self, model: Predictor, inputs: np.ndarray) -> np.ndarray:
        batch_size = self.config.evaluation.batch_size
        return predict(lambda x: model(x.to(self.device)), as_tensor(inputs), batch_size)

    def _write_clients(self, correct: Sequence[np.ndarray], round: int) -> None:
        """Accuracy on what every client held out, of the served model or of its own."""
        accuracy = {
            client: (float(right[np.searchsorted(self._held_rows, held)].mean()), len(held))
            for client in self._shown
            for held in (self._held[client],)
            for right in (correct[client if len(correct) > 1 else 0],)
            if len(held)
        }
        self._write_spread("personal" if len(correct) > 1 else "global", accuracy, round)

    def personal(self, clients: Sequence[Mapping[str, Any]], round: int) -> None:
        """The accuracy of clients' own models, after their last local training."""
        name = "holdout_accuracy_after"
        accuracy = {
            row["client_id"]: (row[name], held)
            for row in clients
            if name in row and (held := len(self._held[row["client_id"]]))
        }
        self._write_spread("personal", accuracy, round)

    def _write_spread(
        self, model: str, accuracy: Mapping[int, tuple[float, int]], round: int
    ) -> None:
        """One row per client, and mean, standard deviation and worst tenth over clients."""
        if not accuracy:
            return
        key = {"round": round, "model": model, "split": "client_holdout"}
        of_client = {**key, "scope": "client", "metric": "accuracy"}
        rows: list[dict[str, Any]] = [
            {**of_client, "client_id": client, "value": value, "num_samples": count}
            for client, (value, count) in sorted(accuracy.items())
        ]
        total = sum(count for _, count in accuracy.values())
        rows += [
            {**key, "scope": "global", "metric": name, "value": value, "num_samples": total}
            for name, value in spread([value for value, _ in accuracy.values()]).items()
        ]
        self.sinks.append("evaluations", rows)

    def describe(self, partition: Partition) -> None:
        """What the run's row in `runs` says of its data."""
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

    def partition(self, partition: Partition) -> None:
        """Round 0 of `clients`: every client shown and its data; what repair did is an event."""
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

    def noise(self, split: ClientSplit) -> None:
        """Which clients' training data is spoilt, and how: one event each."""
        noise = self.config.noise
        for client in split.spoilt:
            count = len(split.fit[client])
            text = f"{num_wrong(noise.labels, count)} of {count} training labels are wrong"
            if noise.images != "none":
                text += f"; all inputs are corrupted: {noise.images}, severity {noise.severity:g}"
            self.event("noise", text, 0, client)

    def synthetic(self, task: Task) -> None:
        """The generated set, and what it is like in the frozen encoder's space."""
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
        """What the server has made in a round."""
        if made is None:
            return
        if made.images is not None:
            images = made.images.inputs.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
            labels, clients = made.images.labels.cpu().numpy(), made.clients.cpu().numpy()
            names = self.data.meta["classnames"]
            self.sinks.save_round_images(round, images, labels, names, clients)
        rows = [{"round": round, **row, **self._local(row)} for row in made.rows]
        if made.images is not None and self.config.evaluation.set_quality:
            found = self._quality(made.images)
            if len(rows) == 1 and rows[0].get("client_id") is None:
                rows[0] |= found
            else:  # of all clients' sets together
                rows.append({"round": round, **found})
        self.sinks.append("synthetic", rows)
        for kind, message, client in made.events:
            self.event(kind, message, round, client if client >= 0 else None)

    def _local(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Of how many classes a set's client has samples; the server may not know."""
        client = row.get("client_id")
        if client is None:
            return {}
        return {"local_classes": len(np.unique(self.data.observed_labels[self._fit[client]]))}

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


def _domains_of(arrays: Mapping[str, np.ndarray], held: np.ndarray) -> dict[str, np.ndarray]:
    """Domain of every sample of the splits that have domains; `held` are rows of train."""
    found = {}
    if "test_domains" in arrays:
        found["test"] = np.asarray(arrays["test_domains"])
    if "train_domains" in arrays and len(held):
        found["client_holdout"] = np.asarray(arrays["train_domains"])[held]
    return found


def about_run(config: Experiment, method: type[Method], device: torch.device) -> dict[str, Any]:
    """What the run's row in `runs` says before anything is loaded."""
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
