"""Rows of the table `clients`: what a client held, did, sent and cost, and what it learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedsim.engine.batching import Group, num_steps
from fedsim.engine.update_steps.base import GroupContext, Sent
from fedsim.methods.base import Batches, Update
from fedsim.methods.training import cross_entropy
from fedsim.params import Params, add, norms, num_bytes, stack
from fedsim.process import peak_memory


class ClientRows:
    """Makes the rows of a host. With `client_metrics`, clients are measured before and after."""

    def __init__(self, client_metrics: bool, node: str, device: torch.device) -> None:
        self.client_metrics, self._node, self._device = client_metrics, node, device

    def of(
        self,
        group: Group,
        context: GroupContext,
        held: Batches | None,
        update: Update,
        sent: Sent,
        flops: Sequence[int],
        train_s: float,
    ) -> list[dict[str, Any]]:
        """Rows of a group's clients, without ghosts.

        `held` are held-out samples to measure on, if any; `update` is the trained update, and
        `sent` is the update after all steps; `train_s` are seconds of the whole group.
        """
        real = len(group.client_ids)
        change = update.delta if update.change is None else update.change
        products = update.products if update.change is None else {}
        length = norms(change, products).tolist() if change or products else [0.0] * real
        measured: dict[str, list[float]] = {}
        if self.client_metrics:
            measured = self._before_and_after(context, context.batches, change)
        if held is not None:
            found = self._before_and_after(context, held, change)
            measured |= {f"holdout_{name}": values for name, values in found.items()}
        memory, up, extra = peak_memory(self._device), sent.num_bytes, update.extra
        return [
            {
                "client_id": client,
                "num_samples": len(group.indices[c]),
                "num_steps": num_steps(len(group.indices[c]), context.batches.train, context.round),
                "status": "ok",
                "weight": float(update.weight[c]),
                "update_norm": length[c],
                "bytes_up": up + (num_bytes(extra[c]) if extra else 0),
                "train_flops": flops[c],
                "train_s": train_s / real,
                "node": self._node,
                "device": str(self._device),
                **memory,
                **{name: values[c] for name, values in measured.items()},
            }
            for c, client in enumerate(group.client_ids)
        ]

    @torch.no_grad()
    def _before_and_after(
        self, context: GroupContext, batches: Batches, change: Params
    ) -> dict[str, list[float]]:
        """Loss and accuracy on each client's own data, as received and as trained."""
        message = context.message
        start = {name: message[name] for name in change if name in message}
        if not change or len(start) != len(change):
            return {}
        before = stack(start, batches.num_clients)
        found: dict[str, list[float]] = {}
        for when, params in (("before", before), ("after", add(before, change))):
            loss = torch.zeros(batches.num_clients, device=self._device)
            correct, count = torch.zeros_like(loss), torch.zeros_like(loss)
            for batch in batches.all_samples():
                logits = context.method.client_logits(message, params, batch.x)
                if logits is None:
                    return {}
                valid = batch.mask.sum(1)
                loss += cross_entropy(logits, batch.y, batch.mask) * valid
                correct += ((logits.argmax(-1) == batch.y) & batch.mask).sum(1)
                count += valid
            found[f"loss_{when}"] = (loss / count.clamp_min(1)).tolist()
            found[f"accuracy_{when}"] = (correct / count.clamp_min(1)).tolist()
        return found
