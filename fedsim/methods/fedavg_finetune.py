"""FedAvg (McMahan et al., 2017) of CLIP's whole image encoder under frozen text embeddings.

    logits = scale * g(x; w) text^T,   g = L2-normalised image encoder, w all of its weights
    round:  every client trains w on its own images;  w <- sum_k (n_k / n) w_k

Weights and biases of normalisation layers are trained and averaged like all others. Running
statistics (of an encoder with BatchNorm) stay CLIP's own, on clients and at test. Statistics of
non-IID batches would differ from client to client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.methods.base import Batches, Method, Predictor, Received, State, Task, Update
from fedsim.methods.shared.require import require_clip, require_text
from fedsim.methods.training import train_locally
from fedsim.models.cache import text_logits
from fedsim.params import Params, add

TEXT = "frozen/text"
"""Name of the class embeddings beside the encoder's weights."""


class FedAvgFinetune(Method):
    """Federated averaging of all weights of the image encoder."""

    inputs = "pixels"
    frozen = ()  # the encoder's weights are the message

    def setup(self, task: Task, rng: torch.Generator) -> State:
        weights = {name: p.detach().clone() for name, p in self._visual().named_parameters()}
        return {"weights": weights, "text": require_text(task)}

    def constants(self, state: State) -> Params:
        return {TEXT: state["text"], **dict(self._visual().named_buffers())}

    def message(self, state: State) -> Params:
        return dict(state["weights"])

    def client_update(
        self,
        message: Params,
        batches: Batches,
        client_state: Sequence[State],
        rng: Sequence[torch.Generator],
    ) -> tuple[Update, Sequence[State]]:
        logits = partial(self.client_logits, message)
        weights = {name: message[name] for name, _ in self._visual().named_parameters()}
        delta = train_locally(weights, logits, batches)
        return Update(delta, weight=batches.num_samples), client_state

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        features = vmap(self._encode)(params, x)
        return text_logits(features, message[TEXT], self.task.logit_scale)

    def aggregate(self, state: State, received: Received) -> State:
        return state | {"weights": add(state["weights"], received.mean)}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return lambda x: text_logits(
            self._encode(state["weights"], x), state["text"], self.task.logit_scale
        )

    def _encode(self, weights: Params, x: Tensor) -> Tensor:
        return F.normalize(functional_call(self._visual(), weights, (x,)), dim=-1)

    def _visual(self) -> nn.Module:
        return require_clip(self.task, "trains the image encoder").visual
