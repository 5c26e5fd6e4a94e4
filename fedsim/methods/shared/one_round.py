"""One round of exact sums: clients need no message, and the sums are the same for any split."""

from __future__ import annotations

from fedsim.config import MethodConfig
from fedsim.methods.base import Method, State
from fedsim.params import Params


class OneRoundOfSums(Method):
    """Base of methods that sum statistics over clients once and solve for the model."""

    averages = False

    @classmethod
    def num_rounds(cls, config: MethodConfig) -> int:
        return min(1, config.train.rounds)

    def message(self, state: State) -> Params:
        return {}  # clients need nothing to begin with
