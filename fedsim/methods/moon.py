"""MOON (Li, He and Song, CVPR 2021) of a classifier trained from scratch on images.

    z, z_glob, z_prev   embeddings of an image by the model that the client trains, by the model
                        that the server sent, and by the client's model of its last participation

    client k minimises  cross-entropy + mu * l,   averaged over its images
        l = -log( exp(cos(z, z_glob) / t) / (exp(cos(z, z_glob) / t) + exp(cos(z, z_prev) / t)) )
    server:             w <- sum_k (n_k / n) w_k

The embedding is the input of the last layer. In all methods that the paper compares, a projection
of two layers stands before the last one: `models.classifier.projection`. Before its second
participation a client has no previous model, and minimises cross-entropy alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from fedsim.methods.base import Batch, Batches, Generators, States, Update
from fedsim.methods.fedavg import FedAvg
from fedsim.methods.training import LabelLoss, Loss
from fedsim.params import Params, stack, unstack


class MoonOptions(BaseModel, extra="forbid"):
    """The contrastive term."""

    mu: float = Field(1.0, ge=0)
    """Weight of the term; the paper tries 0.1, 1, 5 and 10."""
    temperature: float = Field(0.5, gt=0)
    """t of the term."""


class Moon(FedAvg):
    """Federated averaging with a model-contrastive local loss."""

    Options = MoonOptions
    options: MoonOptions

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        update, _ = super().client_update(message, batches, client_state, rng)
        trained = {k: message[k] + v for k, v in update.delta.items()}
        return update, [unstack(trained, c) for c in range(batches.num_clients)]

    def loss(self, message: Params, batches: Batches, client_state: States) -> Loss:
        options, of_labels = self.options, LabelLoss(batches)
        sent = stack(message, batches.num_clients)
        previous = {
            k: torch.stack([state.get(k, v) for state in client_state]) for k, v in message.items()
        }

        def loss(params: Params, batch: Batch) -> Tensor:
            z = self.net.embed_clients(params, batch.x)
            with torch.no_grad():
                z_glob = self.net.embed_clients(sent, batch.x)
                z_prev = self.net.embed_clients(previous, batch.x)
            contrast = contrastive(z, z_glob, z_prev, options.temperature) * batch.mask
            mean = contrast.sum(1) / batch.mask.sum(1).clamp_min(1)
            return of_labels(self.net.classify(params, z), batch) + options.mu * mean

        return loss


def contrastive(z: Tensor, z_glob: Tensor, z_prev: Tensor, temperature: float) -> Tensor:
    """The loss l of every image: embeddings `(..., B, d)` -> losses `(..., B)`.

    A client without a previous model passes `z_glob` as `z_prev`; the gradient is then 0.
    """
    near = F.cosine_similarity(z, z_glob, dim=-1)
    far = F.cosine_similarity(z, z_prev, dim=-1)
    return F.softplus((far - near) / temperature)
