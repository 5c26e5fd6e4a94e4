"""The paths of clients' local training that FedDGM matches: trained by clients, read by the server.

A path goes from a start over checkpoints to an end. Clients send differences to the start; those of
the first start's end are an ordinary update, everything else travels beside it, under names with
spaces, which no module path has.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    first = stack(starts[0], batches.num_clients)
    beside: list[Params] = [{} for _ in batches.client_ids]

    def send(prefix: str, change: Params) -> None:
        for c, sent in enumerate(beside):
            sent |= {f"{prefix} {k}": v for k, v in unstack(change, c).items()}

    # A client's own steps, not the group's, are cut into stretches of about the same number.
    cuts = [batches.num_steps * n // segments for n in range(1, segments)]
    passed = [{k: v.clone() for k, v in first.items()} for _ in cuts]

    def keep(step: int, weights: Params) -> None:
        for cut, checkpoint in zip(cuts, passed, strict=True):
            here = (cut == step).nonzero().flatten().tolist()
            for k, v in weights.items() if here else ():
                checkpoint[k][here] = v.detach()[here]

    change = train_apart(first, logits, batches, keep if cuts else None)
    for number, checkpoint in enumerate(passed, 1):
        send(f"checkpoint {number}", subtract(checkpoint, first))
    for number, other in enumerate(starts[1:], 1):
        send(f"start {number}", train_apart(stack(other, batches.num_clients), logits, batches))
    return change, beside


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
