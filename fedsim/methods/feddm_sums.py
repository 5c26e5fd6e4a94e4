"""Ours: FedDM's distribution matching on the server, from sums under secure aggregation.

    w            the surrogate                      h(x; w)  its embedding of an image
    w_r, A_r     R probes a round: random weights and an augmentation, drawn from a shared seed

    client k:    s_krc = sum of h(A_r(x); w_r) over its images x of class c,  n_kc = how many
    server:      mu_rc = sum_k s_krc / sum_k n_kc                      (sums over clients alone)
                 D <- images on which the class means of every probe so far come to mu_rc
                                                                       (`fedsim.distill.shared_set`)
                 w, and larger networks, are trained on D, each from its last weights

FedDM's clients distil their own data against network after network and send the images. The real
side of that loss is a class mean. Here clients send this mean's sums, which add up to the mean over
all clients. The result is one set for all, the same under any partition. Secure aggregation hides
every client's own part. A probe's mean stays true when the surrogate moves on, so probes of all
rounds are matched. DP-MERF (Harder et al., AISTATS 2021) trains a generator on class means of
random features; here the features are a network's, and the sums are federated.

Without secure aggregation the server sees each client's class means. Of a class with one image it
sees the features of that image under R networks, which are enough to recover it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from fedsim.distill.distilled_set import NOBODY, SyntheticSet
from fedsim.distill.shared_set import Means, MeansWork, Probing, match_means
from fedsim.methods.base import Batches, Executor, Generators, Received, State, States, Task, Update
from fedsim.methods.shared.from_prior import FromPrior
from fedsim.methods.shared.namespaces import from_namespace
from fedsim.methods.shared.statistics import one_hot, plain_sums, totals
from fedsim.methods.shared.trains_on_sets import SetOptions, TrainsOnSets
from fedsim.params import Params, to_device

ROUND = "server/rounds_done"
"""Name of the round's number in a message; it seeds the draw of probes."""


class FedDMSumsOptions(SetOptions, extra="forbid"):
    """The number of probes, and their distance from the surrogate."""

    probes: int = Field(32, gt=0)
    """R: probes of a round. Uploads grow by this factor."""
    weights: Literal["fresh", "near"] = "fresh"
    """Weights of probes: from the network's initialisation, or near the surrogate as in FedDM."""
    rho: float = Field(5.0, ge=0)
    """`near`: largest length of the perturbation."""
    remember: bool = True
    """Match the probes of all rounds instead of the newest alone."""
    warm_start: bool = True
    """Start from the last round's latents."""


class FedDMSums(FromPrior, TrainsOnSets):
    """Distribution matching from securely summable class means."""

    reduction = "sum"
    Options = FedDMSumsOptions
    options: FedDMSumsOptions

    @property
    def probing(self) -> Probing:
        """The draw of probes."""
        own, operations = self.options, self.config.distill.augment
        return Probing(own.probes, own.weights, own.rho, operations)

    def setup(self, task: Task, rng: torch.Generator) -> State:
        return super().setup(task, rng) | {"means": []}

    def message(self, state: State) -> Params:
        return {**state["surrogate"], ROUND: torch.tensor(state["round"])}

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        weights, round = from_namespace(message), int(message[ROUND]) + 1
        probes = self.probing.draw(self.net, weights, self.config.train_seed, round)
        num_classes, sums = self.task.num_classes, torch.zeros(())
        for batch in batches.all_samples():
            shape = batch.mask.shape
            belongs = one_hot(batch.y, num_classes).float() * batch.mask[..., None]
            features = torch.stack([probe(self.net, batch.x.flatten(0, 1)) for probe in probes])
            by_client = features.view(len(probes), *shape, -1).transpose(0, 1)
            sums = sums.to(features) + belongs.mT[:, None] @ by_client
        counts = batches.label_counts(num_classes)
        return plain_sums({"sums": sums, "counts": counts}, batches), client_state

    def aggregate(self, state: State, received: Received) -> State:
        state = super().aggregate(state, received)
        if not received.mean:  # every client failed
            return state
        found = totals(received)
        counts = found["counts"].round()
        means = Means(
            state["surrogate"],
            received.round,
            (found["sums"] / counts.clamp_min(1)[None, :, None]).float(),
            (counts > 0).float(),
        )
        kept = state["means"] if self.options.remember else []
        return state | {"means": [*kept, dict(vars(means))]}

    def client_sets(
        self, state: State, received: Received, executor: Executor
    ) -> list[SyntheticSet]:
        if not state["means"]:
            return []
        means = to_device(tuple(Means(**one) for one in state["means"]), "cpu")
        seen = torch.stack([one.present for one in means]).amax(0)
        classes = tuple(seen.nonzero().flatten().tolist())
        work = MeansWork(
            self.net,
            means,
            self.probing,
            classes,
            self.config.distill,
            *self.priors(executor.device),
            to_device(self.memory(state, NOBODY, classes).get("latents", {}), "cpu"),
            self.config.train_seed,
            received.round,
            executor.device,
        )
        return executor.map(match_means, [work])

    def goes_on(self) -> bool:
        return self.options.warm_start
