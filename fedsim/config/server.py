"""The block `server` of a configuration: what the server does with the averaged update."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from fedsim.config.chosen import Chosen
from fedsim.config.families import SERVER_OPTIMISERS, Family


class ServerConfig(Chosen):
    """The server's step on the averaged update, the same words for every method that averages."""

    family: ClassVar[Family] = SERVER_OPTIMISERS
    choice: ClassVar[str] = "optimizer"
    always_written = {"momentum": 0.9, "beta2": 0.99, "epsilon": 1e-3}

    optimizer: str = "mean"
    """`mean` (FedAvg), `momentum` (FedAvgM), `adam` (FedAdam) or `yogi` (FedYogi)."""
    lr: float = Field(1.0, gt=0)
    """Factor of the server's step."""
    class_weighting: float = Field(0.0, ge=0, le=1)
    """Rows that belong to a class are averaged by each client's samples of it (1), by its size
    (0), or by what lies between."""
