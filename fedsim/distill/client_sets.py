"""One synthetic set per client from where its training started and ended (FedDGM's server).

    draw latents z of the set's labels from the prior          (or go on from the last round's)
    repeat latent_steps times:
        x = decode(z)
        match the student trained on x to the client's path    (trajectory.py, matching.py)
        pull the gradient back through the decoder; step z and the student's step size,
        and the decoder's weights where they are fine-tuned
    return decode(z)

Every draw is keyed by (seed, round, client). A set does not depend on the machine that makes it,
and depends on the clients beside it only by rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsim.config.distill import DistillConfig
from fedsim.distill.augment import draw_augmentation
from fedsim.distill.descent import MOMENTUM, Descent, FineTuning
from fedsim.distill.distilled_set import SyntheticSet
from fedsim.distill.dual_keys import CacheModel, KeyStudent
from fedsim.distill.matching import GradientStudent, gradient_rows
from fedsim.distill.priors.base import LoadPrior
from fedsim.distill.priors.decode import decode_all, decode_with_way_back
from fedsim.distill.student import Lesson, Match, NetworkFunction, Step, Student
from fedsim.distill.trajectory import NetworkStudent
from fedsim.params import Params, to_device
from fedsim.seeding import torch_rng

_FIRST_LR, _LR_FACTOR, _LR_TRIES, _LEAST_MOVE = 0.01, 2.0, 12, 0.25
_LARGEST_LR_STEP = 0.5


@dataclass(frozen=True)
class ClientMove:
    """One client's training, and its set of the last round.

    Attributes:
        client_id: The client.
        segments: Weights before and after training: one pair, or several, which are matched in
            turn.
        classes: Labels of its set's images.
        latents: The set's latents in the last round; {} draws new ones.
        lr: The student's step size in the last round.
    """

    client_id: int
    segments: tuple[tuple[Params, Params], ...]
    classes: tuple[int, ...]
    latents: Params = field(default_factory=dict)
    lr: float | None = None


@dataclass(frozen=True)
class Distillation:
    """Sets to distil together; sent to another process as it is.

    Attributes:
        sources: Clients that share a leading axis.
        network: The surrogate as a function of its weights.
        settings: The block `distill`.
        prior: Loads the prior of the sets.
        noise: Loads a prior without knowledge, whose draws are the noise control.
        seed: The run's seed.
        round: From 1.
        device: The device to compute on.
    """

    sources: tuple[ClientMove, ...]
    network: NetworkFunction
    settings: DistillConfig
    prior: LoadPrior
    noise: LoadPrior
    seed: int
    round: int
    device: str = "cpu"


def distil(work: Distillation) -> list[SyntheticSet]:
    """The sets of all clients of `work`; in halves if together they do not fit in memory."""
    try:
        return _together(work)
    except torch.OutOfMemoryError:
        if len(work.sources) == 1:
            raise
    # Outside of the handler: its traceback keeps alive the tensors that did not fit.
    middle = (len(work.sources) + 1) // 2
    parts = (work.sources[:middle], work.sources[middle:])
    found = [one for part in parts for one in distil(replace(work, sources=part))]
    return [replace(one, crowded=True) for one in found]


def _together(work: Distillation) -> list[SyntheticSet]:
    started = time.perf_counter()
    run = _Run(work)
    before, noise_images = run.images(), run.noise()
    if work.settings.student_lr == "auto":
        run.search_lr(before)
    loss_before = run.measure(before)
    for _ in range(work.settings.latent_steps):
        run.step()
    after = run.images()
    loss_after, loss_noise = run.measure(after), run.measure_control(noise_images)
    share = (time.perf_counter() - started) / len(work.sources)
    terms = gradient_rows(work.sources[0].segments[0][0]) if work.settings.loss == "gradient" else 1
    return [
        SyntheticSet(
            source.client_id,
            after[c, : len(run.labels[c])].cpu(),
            run.labels[c].cpu(),
            to_device(run.latents[c], "cpu"),
            float(loss_before[c]),
            float(loss_after[c]),
            float(loss_noise[c]),
            share,
            float(run.log_lr[c].exp()),
            terms,
        )
        for c, source in enumerate(work.sources)
    ]


def student_of(network: NetworkFunction, settings: DistillConfig) -> Student:
    """The student that learns with these settings of `distill`; keys of a cache have their own."""
    if settings.loss == "gradient":
        return GradientStudent(network)
    if isinstance(network, CacheModel):
        return KeyStudent(network, settings.gradient)
    return NetworkStudent(network, settings.gradient, settings.distance)


class _Run:
    """The state of one distillation: latents, step sizes, generators, momenta."""

    def __init__(self, work: Distillation) -> None:
        self.work, self.settings = work, work.settings
        self._fine_tuning = FineTuning(work.prior())
        self.prior = self._fine_tuning.prior
        how = self.settings
        self._student = student_of(work.network, how)
        self.device = torch.device(work.device)
        per_class = self.settings.images_per_class
        self.labels = [
            torch.tensor(s.classes, device=self.device).repeat_interleave(per_class)
            for s in work.sources
        ]
        self._counts = [len(y) for y in self.labels]
        self._size = max(self._counts)
        self._padded = torch.stack([_padded(y, self._size) for y in self.labels])
        count = max(len(s.segments) for s in work.sources)
        self._segments = [
            tuple(
                _stacked([s.segments[t % len(s.segments)][end] for s in work.sources], self.device)
                for end in (0, 1)
            )
            for t in range(count)
        ]
        self._rngs = [self._rng(s.client_id, "steps") for s in work.sources]
        self.latents = [self._start(c) for c in range(len(work.sources))]
        first = self.settings.student_lr
        lr = _FIRST_LR if first == "auto" else first
        self.log_lr = torch.tensor(
            [math.log(lr if s.lr is None else s.lr) for s in work.sources], device=self.device
        )
        self._lr_momentum = torch.zeros_like(self.log_lr)
        self._descents = [Descent(how, self.prior.maps) for _ in work.sources]
        self._steps_done = 0

    def _rng(self, client: int, purpose: str) -> torch.Generator:
        return torch_rng(self.work.seed, "distill", self.work.round, client, purpose)

    def _start(self, c: int) -> Params:
        source = self.work.sources[c]
        if source.latents:
            return to_device(source.latents, self.device)
        return self.prior.draw(self.labels[c], self._rng(source.client_id, "latents"))

    def images(self) -> Tensor:
        """The current images of all sets, `(C, n, c, h, w)`, padded with zeros."""
        return self._apart(decode_all(self.prior, self._joined()))

    def noise(self) -> Tensor:
        """Draws of a prior without knowledge, in place of the images."""
        prior, clients = self.work.noise(), [s.client_id for s in self.work.sources]
        drawn = [
            decode_all(prior, prior.draw(labels, self._rng(client, "noise")))
            for client, labels in zip(clients, self.labels, strict=True)
        ]
        return self._apart(torch.cat(drawn))

    def _joined(self) -> Params:
        """The latents of all clients in one batch: with small sets, calls cost most."""
        return {k: torch.cat([z[k] for z in self.latents]) for k in self.latents[0]}

    def _apart(self, images: Tensor) -> Tensor:
        return torch.stack([_padded(x, self._size) for x in images.split(self._counts)])

    def step(self) -> None:
        """One step of all latents and step sizes."""
        images, way_back = decode_with_way_back(self.prior, self._joined())
        steps = [self._draw_step() for _ in range(self._num_steps)]
        match = self._match(self._apart(images), steps)
        by_image = [x[:count] for x, count in zip(match.images, self._counts, strict=True)]
        pulled = {k: g.split(self._counts) for k, g in way_back(torch.cat(by_image)).items()}
        for c, latents in enumerate(self.latents):
            gradient = {k: parts[c] for k, parts in pulled.items()}
            self.latents[c] = self._descents[c].step(latents, gradient)
        self._fine_tuning.step()
        if self.settings.student_lr_lr:
            # By the logarithm, so that the step size stays positive.
            by_log = match.lr * self.log_lr.exp()
            self._lr_momentum = MOMENTUM * self._lr_momentum + by_log
            change = self.settings.student_lr_lr * self._lr_momentum
            self.log_lr = self.log_lr - change.clamp(-_LARGEST_LR_STEP, _LARGEST_LR_STEP)
        self._steps_done += 1

    @property
    def _num_steps(self) -> int:
        return 1 if self.settings.loss == "gradient" else self.settings.student_steps

    def _match(self, images: Tensor, steps: Sequence[Step]) -> Match:
        segment = self._segments[self._steps_done % len(self._segments)]
        return self._student.match(self._lesson(images, steps, *segment))

    def measure(self, images: Tensor) -> Tensor:
        """The loss averaged over segments, on fixed batches without augmentation."""
        steps = self._fixed_steps()
        lessons = [self._lesson(images, steps, a, b) for a, b in self._segments]
        return torch.stack([self._student.distance(lesson)[0] for lesson in lessons]).mean(0)

    def measure_control(self, images: Tensor) -> Tensor:
        """The same of images that were not distilled, at a step size of their own if it is free.

        At the sets' step size noise would look worse than it is.
        """
        of_sets = self.log_lr
        if self.settings.student_lr == "auto":
            self.search_lr(images, torch.ones_like(of_sets, dtype=torch.bool))
        loss, self.log_lr = self.measure(images), of_sets
        return loss

    def _fixed_steps(self) -> list[Step]:
        """Always the same batches, without augmentation."""
        rngs = [self._rng(s.client_id, "measure") for s in self.work.sources]
        return [self._draw_step(rngs, augmented=False) for _ in range(self._num_steps)]

    def _lesson(self, images: Tensor, steps: Sequence[Step], start: Params, end: Params) -> Lesson:
        return Lesson(start, end, images, self._padded, self.log_lr.exp(), steps)

    def search_lr(self, images: Tensor, free: Tensor | None = None) -> None:
        """Double or halve the step size as long as the student then matches better.

        Clients that are not `free`, `(C,)` bool, keep their step size: by default the clients that
        have one from an earlier round.

        The student has to move at least a quarter as far as the client. Images without a direction
        match best at a step size of 0, from which no gradient leads away. A step size at which the
        student diverges is given up for a smaller one at which it does not.
        """
        if self.settings.loss == "gradient":
            return
        if free is None:
            free = torch.tensor([s.lr is None for s in self.work.sources], device=self.device)
        best, moved = self._try(images)
        for factor in (_LR_FACTOR, 1 / _LR_FACTOR):
            for _ in range(_LR_TRIES):
                before = self.log_lr
                self.log_lr = torch.where(free, before + math.log(factor), before)
                loss, now = self._try(images)
                diverges = free & ~best.isfinite()
                closer = free & loss.isfinite() & ((loss < best) | diverges)
                if factor > 1:
                    better = closer | (free & loss.isfinite() & (moved < _LEAST_MOVE))
                else:
                    better = (closer & (now >= _LEAST_MOVE)) | diverges
                self.log_lr = torch.where(better, self.log_lr, before)
                best, moved = torch.where(better, loss, best), torch.where(better, now, moved)
                if not better.any():
                    break

    def _try(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on the first segment, and how far the student moves, in the client's moves."""
        lesson = self._lesson(images, self._fixed_steps(), *self._segments[0])
        return self._student.distance(lesson)

    def _draw_step(
        self, rngs: Sequence[torch.Generator] | None = None, augmented: bool = True
    ) -> Step:
        """The next batch of every client: in an order of its own, padded to the longest."""
        rngs = self._rngs if rngs is None else rngs
        operations = self.settings.augment if augmented else ()
        batch = self.settings.student_batch or self._size
        orders = [
            torch.randperm(len(y), generator=rng)[:batch]
            for y, rng in zip(self.labels, rngs, strict=True)
        ]
        size = max(len(order) for order in orders)
        draws = tuple(
            draw_augmentation(operations, len(order), rng, padded_to=size)
            for order, rng in zip(orders, rngs, strict=True)
        )
        rows = torch.stack([_padded(order, size) for order in orders])
        mask = torch.stack([torch.arange(size) < len(order) for order in orders])
        return Step(rows.to(self.device), mask.to(self.device), draws)


def _padded(x: Tensor, size: int) -> Tensor:
    """`(n, ...)` with zeros appended to `(size, ...)`."""
    return torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


def _stacked(weights: Sequence[Params], device: torch.device) -> Params:
    return {k: torch.stack([w[k] for w in weights]).to(device) for k in weights[0]}
