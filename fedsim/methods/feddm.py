"""FedDM (Xiong et al., arXiv 2207.09653): clients distil their own data and send the images.

    w      the global network                 S_k   client k's synthetic set, free pixels
    h_w    its embedding of an image          rho   how far w is perturbed

    client k, for every step:
        w' <- w + e,  e ~ N(0, 1), shortened to length rho where it is longer
        S_k <- S_k - lr grad sum_c |mean h_w'(A(x) of class c) - mean h_w'(A(s) of class c)|^2
                                            (distribution matching, A the same for both)
    server:  D <- union of all S_k;  w is trained on D, from its last weights

No weights are sent up. A client sends uint8 images of the classes that it holds, so the server sees
which classes these are. The block `distill` gives steps, step size, images per class and
augmentation.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.distill.augment import draw_augmentation
from fedsim.distill.distilled_set import SyntheticSet
from fedsim.distill.matching import class_means, distribution_distance
from fedsim.distill.shared_set import Probe, perturbed
from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Executor, Generators, Received, State, States, Update
from fedsim.methods.shared.trains_on_sets import SetOptions, TrainsOnSets
from fedsim.models.image_arrays import from_unit_range, to_unit_range
from fedsim.params import Params

IMAGES, LABELS = "images", "labels"

_MOMENTUM = 0.5


class FedDMOptions(SetOptions, extra="forbid"):
    """The matching of distributions by clients."""

    rho: float = Field(5.0, ge=0)
    """Largest length of the perturbation of the weights."""
    real_batch: int = Field(256, gt=0)
    """Most real images of each class per step."""


class FedDM(TrainsOnSets):
    """Federated learning by distribution matching on clients."""

    trains_ghosts = False
    Options = FedDMOptions
    options: FedDMOptions

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        if config.distill.given().get("generator_lr"):
            raise ConfigError("feddm has no generator to fine-tune: leave out distill.generator_lr")

    def local_flops(self, message: Params, batches: Batches, one_sample: int) -> Tensor:
        # A step passes forwards through real images, and both ways through the set.
        counts = batches.label_counts(self.task.num_classes)
        both_ways = 2 * self.config.distill.images_per_class
        passes = (counts.clamp(max=self.options.real_batch) + both_ways * (counts > 0)).sum(1)
        return one_sample * passes.double() / (1 + both_ways)

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        sent: list[Params] = []
        for c in range(batches.num_clients):
            rows = torch.cat([rows[c, mask[c]] for rows, mask in batches.scan])
            if not len(rows) or batches.client_ids[c] < 0:
                sent.append({})
                continue
            where = rows.to(batches.inputs.device)
            x = batches.prepare(batches.inputs[where].to(batches.device))
            images, labels = self._match(message, x, batches.labels[where].to(x.device), rng[c])
            if images.isfinite().all():  # images with NaN are sent as they are, and refused
                images = from_unit_range(images)
            sent.append({IMAGES: images, LABELS: labels.to(torch.int16)})
        return Update({}, batches.num_samples, linear=False, extra=tuple(sent)), client_state

    def client_sets(
        self, state: State, received: Received, executor: Executor
    ) -> list[SyntheticSet]:
        return [
            SyntheticSet(
                client,
                to_unit_range(update.extra[0][IMAGES]).cpu(),
                update.extra[0][LABELS].long().cpu(),
            )
            for client, update in received.kept
        ]

    def _match(
        self, weights: Params, x: Tensor, y: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One client's set of the classes that it holds: images in [-1, 1], and labels."""
        settings, num_classes = self.config.distill, self.task.num_classes
        held = y.unique()
        labels = held.repeat_interleave(settings.images_per_class)
        noise = torch.rand(len(labels), *x.shape[1:], generator=rng).to(x.device)
        images, momentum = 2 * noise - 1, torch.zeros_like(noise)
        present = torch.zeros(num_classes, device=x.device).index_fill(0, held, 1.0)
        for _ in range(settings.latent_steps):
            near = perturbed(weights, self.options.rho, rng)
            rows = _per_class(y, self.options.real_batch, rng)
            probe = Probe(near, draw_augmentation(settings.augment, 1, rng, siamese=True))
            with torch.no_grad():
                real = class_means(probe(self.net, x[rows]), y[rows], num_classes)
            pixels = images.requires_grad_()
            found = class_means(probe(self.net, pixels), labels, num_classes)
            (gradient,) = torch.autograd.grad(distribution_distance(real, found, present), pixels)
            momentum = _MOMENTUM * momentum + gradient
            images = (images.detach() - settings.feature_lr * momentum).clamp(-1, 1)
        return images.detach(), labels


def _per_class(y: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Rows of at most `most` samples of each class, drawn anew."""
    order = torch.randperm(len(y), generator=rng).to(y.device)
    return torch.cat([order[y[order] == label][:most] for label in y.unique()])
