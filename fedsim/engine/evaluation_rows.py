"""Rows of the tables `evaluations` and `predictions`: how good models are on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedsim.config.sections import EvaluationConfig
from fedsim.engine.evaluate import Scores, mean_scores, predict, score, spread
from fedsim.engine.sinks import Sinks
from fedsim.errors import ConfigError
from fedsim.inputs.run_inputs import RunInputs
from fedsim.inputs.task import as_tensor
from fedsim.methods.base import Predictor


class EvaluationRows:
    """Scores models on every held-out split: test data in a final run only, never in tuning."""

    def __init__(
        self,
        settings: EvaluationConfig,
        final: bool,
        sinks: Sinks,
        data: RunInputs,
        device: torch.device,
    ) -> None:
        self._settings, self._sinks, self._device = settings, sinks, device
        self._split, self._held_rows = data.holdings, data.holdings.held_rows
        self._classnames, self._domain_names = data.meta["classnames"], data.meta["domain_names"]
        self._served = "test" if final else "client_holdout"
        self._samples: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._domains: dict[str, np.ndarray] = {}
        rows: dict[str, tuple[str, Any]] = {"test": ("test", slice(None))} if final else {}
        if len(self._held_rows):
            rows["client_holdout"] = "train", self._held_rows
        for name, (source, where) in rows.items():
            inputs, labels = data.arrays[f"{source}_inputs"], data.arrays[f"{source}_labels"]
            self._samples[name] = inputs[where], np.asarray(labels)[where]
            if f"{source}_domains" in data.arrays:
                self._domains[name] = np.asarray(data.arrays[f"{source}_domains"])[where]
        if self._served not in self._samples:
            raise ConfigError(
                "tuning needs held-out client data, but every client has too few samples to hold "
                "any out: use fewer clients, or a larger evaluation.holdout_fraction"
            )

    def write(
        self,
        models: Sequence[Predictor],
        others: Mapping[str, Predictor],
        round: int,
        last: bool,
    ) -> dict[str, Any]:
        """Score the served model, and other models of the server beside it.

        Args:
            models: Stored inputs -> logits; of several models the mean scores are written.
            others: By name.
            round: Which round the models belong to.
            last: Whether to add scores per class and domain, and per-sample predictions.

        Returns:
            `split`, `accuracy` and `loss` of the served model, for the row of `rounds`.

        Raises:
            ConfigError: A name in `others` is that of the main model or of clients' own.
        """
        for name in others.keys() & {"global", "personal"}:
            raise ConfigError(
                f"the method calls one of its predictors {name!r}, which is what the table "
                f"evaluations calls its main model: choose another name"
            )
        served: dict[str, Any] = {}
        for split, (inputs, labels) in self._samples.items():
            key = {"round": round, "model": "global", "split": split}
            each = [score(self._logits(model, inputs), labels) for model in models]
            scores = mean_scores(each)
            if split == self._served:
                accuracy, loss = scores.metrics["accuracy"], scores.metrics["nll"]
                served = {"split": split, "accuracy": accuracy, "loss": loss}
            self._write_scores(key, scores, labels, last)
            if not last:
                continue
            correct = [np.asarray(s.predictions == labels) for s in each]
            if split == "test" and self._settings.predictions and scores.predictions is not None:
                samples = {"sample": np.arange(len(labels)), "label": labels}
                predicted = {"prediction": scores.predictions, "correct": correct[0]}
                where = {"round": round, "split": split}
                self._sinks.append("predictions", where | samples | predicted)
            if split in self._domains:
                self._write_domains(key, np.mean(correct, axis=0))
            if split == "client_holdout" and self._settings.personal:
                self._write_clients(correct, round)
        for name, model in others.items():
            for split, (inputs, labels) in self._samples.items():
                key = {"round": round, "model": name, "split": split}
                self._write_scores(key, score(self._logits(model, inputs), labels), labels, last)
        return served

    def personal(self, clients: Sequence[Mapping[str, Any]], round: int) -> None:
        """The accuracy of clients' own models, after their last local training.

        Args:
            clients: Rows of the table `clients`.
            round: The last.
        """
        name = "holdout_accuracy_after"
        accuracy = {
            row["client_id"]: (row[name], held)
            for row in clients
            if name in row and (held := len(self._split.held[row["client_id"]]))
        }
        self._write_spread("personal", accuracy, round)

    def _logits(self, model: Predictor, inputs: np.ndarray) -> np.ndarray:
        batch_size = self._settings.batch_size
        return predict(lambda x: model(x.to(self._device)), as_tensor(inputs), batch_size)

    def _write_scores(
        self, key: dict[str, Any], scores: Scores, labels: np.ndarray, last: bool
    ) -> None:
        rows = [_row(key, "global", *pair, len(labels)) for pair in scores.metrics.items()]
        if last:
            names, counts = self._classnames, np.bincount(labels)
            rows += [
                _row(key, "class", "accuracy", value, int(counts[c]), class_name=names[c])
                for c, value in scores.per_class.items()
            ]
        self._sinks.append("evaluations", rows)

    def _write_domains(self, key: dict[str, Any], correct: np.ndarray) -> None:
        """Accuracy on every domain; `correct` is the share of models that are right."""
        domains, names = self._domains[key["split"]], self._domain_names
        rows = []
        for domain in np.unique(domains):
            right = correct[domains == domain]
            value = float(right.mean())
            rows.append(_row(key, "domain", "accuracy", value, len(right), domain=names[domain]))
        self._sinks.append("evaluations", rows)

    def _write_clients(self, correct: Sequence[np.ndarray], round: int) -> None:
        """Accuracy on what every client held out, of the served model or of its own."""
        own, accuracy = len(correct) > 1, {}
        for client in self._split.shown:
            held = self._split.held[client]
            if count := len(held):
                rows = np.searchsorted(self._held_rows, held)
                accuracy[client] = float(correct[client if own else 0][rows].mean()), count
        self._write_spread("personal" if own else "global", accuracy, round)

    def _write_spread(
        self, model: str, accuracy: Mapping[int, tuple[float, int]], round: int
    ) -> None:
        """One row per client, and mean, standard deviation and worst tenth over clients."""
        if not accuracy:
            return
        key = {"round": round, "model": model, "split": "client_holdout"}
        rows = [
            _row(key, "client", "accuracy", value, count, client_id=client)
            for client, (value, count) in sorted(accuracy.items())
        ]
        values, counts = zip(*accuracy.values(), strict=True)
        rows += [_row(key, "global", *pair, sum(counts)) for pair in spread(values).items()]
        self._sinks.append("evaluations", rows)


def _row(
    key: dict[str, Any], scope: str, metric: str, value: float, num_samples: int, **part: Any
) -> dict[str, Any]:
    about = {"scope": scope, "metric": metric, "value": value, "num_samples": num_samples}
    return key | about | part
