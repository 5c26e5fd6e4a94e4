"""One synthetic set whose mean features, class by class, are those of all clients together.

    probe r    weights w_r of the network, fresh or near the surrogate's, and one augmentation A_r:
               drawn from a seed that clients and server share
    mu_rc      mean of h(A_r(x); w_r) over all clients' samples x of class c

    draw latents z of the set's labels from the prior          (or go on from the last round's)
    repeat latent_steps times, probe after probe in random order:
        x = decode(z)
        step z against  sum_c |mu_rc - mean h(A_r(x of class c); w_r)|^2

The distance is distribution matching's (matching.py). Its real side is fixed sums instead of
images, so that real images stay on the clients.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedsim.config.distill import DistillConfig
from fedsim.distill.augment import AugmentDraw, augment, draw_augmentation
from fedsim.distill.descent import Descent, FineTuning
from fedsim.distill.distilled_set import NOBODY, SyntheticSet
from fedsim.distill.matching import class_means, distribution_distance
from fedsim.distill.priors.base import LoadPrior, Prior
from fedsim.distill.priors.decode import decode_all, decode_with_way_back
from fedsim.models.classifiers import Classifier
from fedsim.params import Params, to_device
from fedsim.seeding import torch_rng


@dataclass(frozen=True)
class Probe:
    """A network and an augmentation, through which samples become features.

    Attributes:
        weights: The weights of the network whose embedding is averaged.
        draw: One augmentation for all samples; None leaves them as they are.
    """

    weights: Params
    draw: AugmentDraw | None

    def __call__(self, net: Classifier, x: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] -> features `(n, embed_dim)`."""
        return net.embed(self.weights, augment(x, self.draw))


def perturbed(weights: Params, rho: float, rng: torch.Generator) -> Params:
    """Weights moved by Gaussian noise of length at most rho (FedDM)."""
    noise = {k: torch.randn(v.shape, generator=rng).to(v) for k, v in weights.items()}
    length = float(torch.stack([v.square().sum() for v in noise.values()]).sum().sqrt())
    factor = min(1.0, rho / length)
    return {k: v + factor * noise[k] for k, v in weights.items()}


@dataclass(frozen=True)
class Probing:
    """The draw of probes.

    Attributes:
        count: R, probes of a round.
        weights: Fresh from the network's initialisation, or near the surrogate's.
        rho: Largest distance of weights near the surrogate's; see `perturbed`.
        operations: Augmentations to draw from.
    """

    count: int
    weights: Literal["fresh", "near"]
    rho: float
    operations: tuple[str, ...]

    def draw(self, net: Classifier, surrogate: Params, seed: int, round: int) -> list[Probe]:
        """A round's probes: the same wherever they are drawn."""
        found = []
        for number in range(self.count):
            rng = torch_rng(seed, "probe", round, number)
            if self.weights == "fresh":
                weights = {k: v.to(surrogate[k]) for k, v in net.init(rng).items()}
            else:
                weights = perturbed(surrogate, self.rho, rng)
            found.append(Probe(weights, draw_augmentation(self.operations, 1, rng, siamese=True)))
        return found


@dataclass(frozen=True)
class Means:
    """A round's probes and the mean features of all clients under them.

    Attributes:
        surrogate: The surrogate's weights in that round.
        round: From 1.
        values: `(R, num_classes, embed_dim)` mean features.
        present: `(num_classes,)` 1 for classes of which any client has a sample, else 0.
    """

    surrogate: Params
    round: int
    values: Tensor
    present: Tensor


@dataclass(frozen=True)
class MeansWork:
    """A set to distil; sent to another process as it is.

    Attributes:
        net: The surrogate.
        means: This round's, and those of earlier rounds.
        probing: The draw of probes, the same as on the clients.
        classes: Labels of the set's images.
        settings: The block `distill`.
        prior: Loads the set's prior.
        noise: Loads a prior without knowledge, whose draws are the noise control.
        latents: The set's latents in the last round; {} draws new ones.
        seed: The run's seed.
        round: From 1.
        device: The device to compute on.
    """

    net: Classifier
    means: tuple[Means, ...]
    probing: Probing
    classes: tuple[int, ...]
    settings: DistillConfig
    prior: LoadPrior
    noise: LoadPrior
    latents: Params = field(default_factory=dict)
    seed: int = 0
    round: int = 1
    device: str = "cpu"


def match_means(work: MeansWork) -> SyntheticSet:
    """The set on which all probes' class means come closest to those of the clients."""
    started = time.perf_counter()
    device, settings = torch.device(work.device), work.settings
    fine_tuning = FineTuning(work.prior())
    prior = fine_tuning.prior
    labels = torch.tensor(work.classes, device=device)
    labels = labels.repeat_interleave(settings.images_per_class)

    def rng(purpose: str) -> torch.Generator:
        return torch_rng(work.seed, "distill", work.round, purpose)

    targets = []
    for means in to_device(work.means, device):
        probes = work.probing.draw(work.net, means.surrogate, work.seed, means.round)
        targets += [(p, mu, means.present) for p, mu in zip(probes, means.values, strict=True)]

    def distance(target: tuple[Probe, Tensor, Tensor], x: Tensor) -> Tensor:
        probe, wanted, present = target
        found = class_means(probe(work.net, x), labels, len(wanted))
        return distribution_distance(wanted, found, present)

    @torch.no_grad()
    def measure(x: Tensor) -> float:
        newest = targets[-len(work.means[-1].values) :]
        return float(torch.stack([distance(target, x) for target in newest]).mean())

    def drawn(of: Prior, purpose: str) -> Params:
        return of.draw(labels, rng(purpose))

    latents = to_device(work.latents, device) or drawn(prior, "latents")
    before, order = decode_all(prior, latents), rng("steps")
    descent = Descent(settings, prior.maps)
    for _ in range(settings.latent_steps):
        target = targets[int(torch.randint(len(targets), (), generator=order))]
        images, way_back = decode_with_way_back(prior, latents)
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(distance(target, images), images)
        latents = descent.step(latents, way_back(gradient))
        fine_tuning.step()
    after, noise = decode_all(prior, latents), work.noise()
    return SyntheticSet(
        NOBODY,
        after.cpu(),
        labels.cpu(),
        to_device(latents, "cpu"),
        measure(before),
        measure(after),
        measure(decode_all(noise, drawn(noise, "noise"))),
        time.perf_counter() - started,
    )
