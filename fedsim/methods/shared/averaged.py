"""Federated averaging of some of a model's tensors, which most methods here have in common.

w         the tensors that clients train; the model's other tensors stay as they are
round:    every client k takes local steps on its own loss from w, and ends at w_k
          w <- w + sum_k (n_k / n) (w_k - w)              (McMahan et al., 2017, algorithm 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fedsim.methods.base import (
    Batches,
    Generators,
    Method,
    Predictor,
    Received,
    State,
    States,
    Update,
)
from fedsim.methods.training import Loss, minimise, of_logits
from fedsim.params import Params, add


class AveragedModel(Method):
    """Base of methods that average a model. Its tensors are the state, by name."""

    def logits(self, model: Params, x: Tensor) -> Tensor:
        """Inputs `(B, ...)` -> logits `(B, num_classes)`.

        By default the model of stacked clients is called, too: trained tensors, inputs and logits
        then have a client axis in front.
        """
        raise NotImplementedError

    def is_trained(self, name: str) -> bool:
        """Whether clients train the model's tensor of this name."""
        return True

    def loss(self, message: Params, batches: Batches, client_state: States) -> Loss:
        """The loss that every client minimises on a batch, beside the proximal term."""
        return of_logits(partial(self.client_logits, message), batches)

    def constants(self, state: State) -> Params:
        return self._tensors(state, trained=False)

    def message(self, state: State) -> Params:
        return self._tensors(state, trained=True)

    def _tensors(self, state: State, trained: bool) -> Params:
        """The model's tensors; a method may keep other things beside them."""
        return {
            name: v
            for name, v in state.items()
            if isinstance(v, Tensor) and self.is_trained(name) == trained
        }

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        start = {name: v for name, v in message.items() if self.is_trained(name)}
        delta = minimise(start, self.loss(message, batches, client_state), batches)
        return Update(delta, weight=batches.num_samples), client_state

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        return self.logits(message | params, x)

    def aggregate(self, state: State, received: Received) -> State:
        return add(state, received.mean)

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return lambda x: self.logits(state, x)


def flattened(state: State) -> State:
    """A state of earlier versions, which held the trained tensors in a dict of their own."""
    flat: State = {}
    for name, value in state.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
