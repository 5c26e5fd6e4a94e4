"""Averages that weigh by class (`server.class_weighting`).

A row of class c shall be averaged with weights `w_kc = (1 - m) n_k / N + m n_kc`, but the exact sum
weighs every tensor by `n_k`. So a client sends `w_kc / n_k` times its row, and the factors
themselves. The server divides the one average by the other.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.config.sections import ServerConfig
from fedsim.engine.update_steps.base import GroupContext, Place, Sent, UpdateStep
from fedsim.methods.base import Method, Received
from fedsim.params import Params

NAME, SHARE = "class_weighting", "class share"


class ClassWeighting(UpdateStep):
    """Rows that belong to a class count by each client's samples of that class."""

    place = Place.WEIGH
    section = "server"
    settings: ServerConfig

    @classmethod
    def wanted(cls, settings: ServerConfig) -> bool:
        return settings.class_weighting > 0

    def on_clients(self, sent: Sent, group: GroupContext) -> Sent:
        counts = group.batches.label_counts(group.method.task.num_classes)
        samples = group.batches.num_samples.to(counts.device)
        share = class_shares(counts, samples, self.settings.class_weighting)
        delta = weigh_by_class(sent.update.delta, group.method.class_rows(group.message), share)
        update = replace(sent.update, delta=delta)
        return replace(sent, update=update, beside={**sent.beside, NAME: {SHARE: share}})

    def on_server(self, received: Received, method: Method, download: Params) -> Received:
        if NAME not in received.beside:  # no client has answered
            return received
        share = received.beside[NAME][SHARE]
        return replace(
            received, mean=divide_by_class(received.mean, method.class_rows(download), share)
        )


def class_shares(counts: Tensor, samples: Tensor, weighting: float) -> Tensor:
    """The factors `w_kc / n_k`, `(C, N)`, from m and the numbers of samples `(C, N)` and `(C,)`."""
    each = (counts / samples.clamp_min(1)[:, None]).to(counts.dtype)
    return (1 - weighting) / counts.shape[1] + weighting * each


def weigh_by_class(delta: Params, rows: Params, share: Tensor) -> Params:
    """Client side: every row times the client's factor of its class.

    `rows` has the class of each row, `(rows,)`, by name of the tensors that have such rows.
    """
    scaled = {
        name: delta[name] * share[:, classes].view(*delta[name].shape[:2], *[1] * (v.dim() - 2))
        for name, classes in rows.items()
        for v in (delta[name],)
    }
    return delta | scaled


def divide_by_class(mean: Params, rows: Params, share: Tensor) -> Params:
    """Server side: average rows over average factors `(N,)`; zero for a class without a client."""
    out = dict(mean)
    for name, classes in rows.items():
        weight = share[classes].view(-1, *[1] * (out[name].dim() - 1))
        out[name] = torch.where(weight > 0, out[name] / weight.clamp_min(1e-12), 0.0)
    return out
