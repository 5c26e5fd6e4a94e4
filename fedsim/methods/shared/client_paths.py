"""The paths of clients' local training, which clients send and FedDGM's server matches.

A path leads from a start over checkpoints to an end. A client sends differences to the start. The
difference at the end of the first path is an ordinary update. Every other difference travels beside
it, in a namespace of its checkpoint or start.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fedsim.methods.base import Batches
from fedsim.methods.shared.namespaces import from_namespace, into_namespace
from fedsim.methods.training import Logits, train_apart
from fedsim.params import Params, add, stack, subtract, unstack

CHECKPOINT, START = "checkpoint_{}", "start_{}"
"""Namespaces, by number from 1."""

Stretch = tuple[Params, Params]
"""Weights at the begin and at the end of a piece of a client's training."""


def train_paths(
    logits: Logits, starts: Sequence[Params], batches: Batches, segments: int
) -> tuple[Params, list[Params]]:
    """Local training of a group from every start.

    Args:
        logits: The network over the client axis.
        starts: Weights without a client axis.
        batches: The group's local data.
        segments: Number of checkpoints on the first start's path, the end included.

    Returns:
        The change from the first start, `(C, ...)` by name, and per client the tensors beside it.
    """
    first = stack(starts[0], batches.num_clients)
    beside: list[Params] = [{} for _ in batches.client_ids]

    def send(namespace: str, change: Params) -> None:
        for c, sent in enumerate(beside):
            sent |= into_namespace(namespace, unstack(change, c))

    # Each client's own steps are cut into stretches of about the same number.
    cuts = [batches.num_steps * n // segments for n in range(1, segments)]
    passed = [{k: v.clone() for k, v in first.items()} for _ in cuts]

    def keep(step: int, weights: Params) -> None:
        for cut, checkpoint in zip(cuts, passed, strict=True):
            here = (cut == step).nonzero().flatten().tolist()
            for k, v in weights.items() if here else ():
                checkpoint[k][here] = v.detach()[here]

    change = train_apart(first, logits, batches, keep if cuts else None)
    for number, checkpoint in enumerate(passed, 1):
        send(CHECKPOINT.format(number), subtract(checkpoint, first))
    for number, other in enumerate(starts[1:], 1):
        send(START.format(number), train_apart(stack(other, batches.num_clients), logits, batches))
    return change, beside


def read_paths(
    starts: Sequence[Params], change: Params, beside: Params, segments: int
) -> list[Stretch]:
    """One client's stretches in the order of training, without those on which it stood still.

    Args:
        starts: As in `train_paths`.
        change: From the first start, without a client axis.
        beside: The tensors that the client sent beside the change.
        segments: As in `train_paths`.
    """

    def moved(start: Params, namespace: str) -> Params:
        return add(start, from_namespace(beside, namespace))

    first = starts[0]
    path = [first, *(moved(first, CHECKPOINT.format(n)) for n in range(1, segments))]
    stretches = list(pairwise([*path, add(first, change)]))
    stretches += [(other, moved(other, START.format(n))) for n, other in enumerate(starts[1:], 1)]
    return [(a, b) for a, b in stretches if any((a[k] != b[k]).any() for k in a)]
