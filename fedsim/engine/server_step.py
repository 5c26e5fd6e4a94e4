"""The server's step on the averaged update, by the optimiser that `server.optimizer` names."""

from __future__ import annotations

from fedsim.config.families import SERVER_OPTIMISERS, load_module
from fedsim.config.sections import ServerConfig
from fedsim.params import Params

Moments = dict[str, Params]
"""What an optimiser keeps from round to round, such as first and second moments, by name."""


def server_step(mean: Params, moments: Moments, server: ServerConfig) -> tuple[Params, Moments]:
    """The change of the model from the clients' average change, and the moments for the next round.

    `moments` are those of the last round, {} at first.
    """
    optimiser = load_module(SERVER_OPTIMISERS[server.optimizer])
    change, moments = optimiser.step(mean, moments, server.lr, server.options())
    return change, moments
