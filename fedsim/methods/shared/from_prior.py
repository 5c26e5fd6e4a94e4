"""Base of methods whose server makes images from the latents of `distill.prior`."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.config.distill import DistillConfig
from fedsim.distill.client_sets import ClientMove, Distillation, distil
from fedsim.distill.distilled_set import SyntheticSet
from fedsim.distill.priors.base import LoadPrior, Prompts
from fedsim.distill.priors.load import image_priors, prompts_of
from fedsim.distill.student import NetworkFunction
from fedsim.methods.base import Executor, Method
from fedsim.params import to_device


class FromPrior(Method):
    """Draws and distils with the configured prior."""

    def check_task(self) -> None:
        super().check_task()
        load_prior, _ = self.priors(str(self.task.device))
        load_prior()

    def priors(self, device: str) -> tuple[LoadPrior, LoadPrior]:
        """Loaders of the prior that sets are made from, and of its noise control."""
        assert self.task.image_shape is not None
        return image_priors(self.config.distill, self.prompts, self.task.image_shape, device)

    @property
    def prompts(self) -> Prompts:
        """The prior's request to its generator."""
        config, names = self.config, self.task.classnames
        return prompts_of(
            config.distill, config.synthetic, config.models, config.data.templates, names
        )

    def distilled(
        self,
        moves: Sequence[tuple[NetworkFunction, Sequence[ClientMove]]],
        settings: DistillConfig,
        round: int,
        executor: Executor,
    ) -> list[SyntheticSet]:
        """A set for every move, in the same order.

        Args:
            moves: Networks, and the moves of the clients that trained them.
            settings: The block `distill`. `clients_at_once` moves are distilled together.
            round: The round, from 1.
            executor: Distils.
        """
        size, device = settings.clients_at_once, executor.device
        items = [
            Distillation(
                to_device(tuple(alike[i : i + size]), "cpu"),
                network,
                settings,
                *self.priors(device),
                self.config.train_seed,
                round,
                device,
            )
            for network, alike in moves
            for i in range(0, len(alike), size)
        ]
        return [one for found in executor.map(distil, items) for one in found]
