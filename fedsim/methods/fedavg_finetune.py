"""FedAvg (McMahan et al., 2017) of CLIP's whole image encoder under frozen text embeddings.

    logits = scale * g(x; w) text^T,   g = L2-normalised image encoder, w all of its weights
    round:  every client trains w on its own images;  w <- sum_k (n_k / n) w_k

Weights and biases of normalisation layers are trained and averaged like all others. Running
statistics (of an encoder with BatchNorm) stay CLIP's own, on clients and at test. Statistics of
non-IID batches would differ from client to client.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.methods.base import State, Task
from fedsim.methods.shared.averaged import AveragedModel, flattened
from fedsim.methods.shared.require import require_clip, require_text
from fedsim.models.cache import text_logits
from fedsim.params import Params

TEXT = "frozen/text"
"""Name of the class embeddings beside the encoder's weights."""


class FedAvgFinetune(AveragedModel):
    """Federated averaging of all weights of the image encoder."""

    inputs = "pixels"
    frozen: ClassVar[tuple[Literal["visual", "text"], ...]] = ()  # all of it is the message

    @cached_property
    def tower(self) -> nn.Module:
        """The image encoder, whose weights the model's replace."""
        return require_clip(self.task, "trains the image encoder").visual

    def is_trained(self, name: str) -> bool:
        return name in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(dict(self.tower.named_parameters()))

    def setup(self, task: Task, rng: torch.Generator) -> State:
        weights = {name: p.detach().clone() for name, p in self.tower.named_parameters()}
        return {**weights, TEXT: require_text(task)}

    def restored(self, state: State) -> State:
        return {TEXT if name == "text" else name: v for name, v in flattened(state).items()}

    def constants(self, state: State) -> Params:
        return {TEXT: state[TEXT], **dict(self.tower.named_buffers())}

    def logits(self, model: Params, x: Tensor) -> Tensor:
        weights = {name: v for name, v in model.items() if name != TEXT}
        return text_logits(self._encode(weights, x), model[TEXT], self.task.logit_scale)

    def client_logits(self, message: Params, params: Params, x: Tensor) -> Tensor:
        frozen = {name: v for name, v in message.items() if name not in params and name != TEXT}
        _ = self.tower  # built here, outside of the transform
        features = vmap(lambda own, x: self._encode(frozen | own, x))(params, x)
        return text_logits(features, message[TEXT], self.task.logit_scale)

    def _encode(self, weights: Params, x: Tensor) -> Tensor:
        return F.normalize(functional_call(self.tower, weights, (x,)), dim=-1)
