"""The paths of clients' local training that FedDGM matches: trained by clients, read by the server.

A path goes from a start over checkpoints to an end. Clients send differences to the start; those of
the first start's end are an ordinary update, everything else travels beside it, under names with
spaces, which no module path has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from fedsim.methods.base import Batches
from fedsim.methods.training import Logits, train_apart
from fedsim.params import Params, add, stack, subtract, unstack

Stretch = tuple[Params, Params]
"""Weights from which and to which a client trained."""


def train_paths(
    logits: Logits, starts: Sequence[Params], batches: Batches, segments: int
) -> tuple[Params, list[Params]]:
    """Local training of a group from every start.

    Args:
        logits: The network over the client axis.
        starts: Weights without a client axis.
        batches: The group's local data.
        segments: Checkpoints on the first start's path, its end included.

    Returns:
        The change from the first start, `(C, ...)` by name, and per client what goes beside it.
    """
    first = weights = stack(starts[0], batches.num_clients)
    beside: list[Params] = [{} for _ in batches.client_ids]

    def send(prefix: str, change: Params) -> None:
        for c, sent in enumerate(beside):
            sent |= {f"{prefix} {k}": v for k, v in unstack(change, c).items()}

    for number, part in enumerate(_parts(batches, segments), 1):
        weights = add(weights, train_apart(weights, logits, part))
        if number < segments:
            send(f"checkpoint {number}", subtract(weights, first))
    for number, other in enumerate(starts[1:], 1):
        send(f"start {number}", train_apart(stack(other, batches.num_clients), logits, batches))
    return subtract(weights, first), beside


def read_paths(
    starts: Sequence[Params], change: Params, beside: Params, segments: int
) -> list[Stretch]:
    """One client's stretches, in the order of training; those on which it stood still are left out.

    Args:
        starts: As in `train_paths`.
        change: From the first start, without a client axis.
        beside: What the client sent beside it.
        segments: As in `train_paths`.
    """

    def moved(start: Params, prefix: str) -> Params:
        return {k: v + beside[f"{prefix} {k}"] for k, v in start.items()}

    first = starts[0]
    path = [first, *(moved(first, f"checkpoint {n}") for n in range(1, segments))]
    stretches = list(pairwise([*path, add(first, change)]))
    stretches += [(other, moved(other, f"start {n}")) for n, other in enumerate(starts[1:], 1)]
    return [(a, b) for a, b in stretches if any((a[k] != b[k]).any() for k in a)]


def _parts(batches: Batches, count: int) -> list[Batches]:
    """Local training cut into stretches of about as many steps; some are empty if there are few."""
    cuts = [len(batches.steps) * i // count for i in range(count + 1)]
    return [replace(batches, steps=batches.steps[a:b]) for a, b in pairwise(cuts)]
