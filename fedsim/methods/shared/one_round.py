"""One round of exact sums: clients need no message, and the sums are the same for any split."""

from __future__ import annotations

from fedsim.config import MethodConfig
from fedsim.methods.base import Batches, Generators, Method, Received, State, States, Update
from fedsim.methods.shared.statistics import plain_sums, totals
from fedsim.params import Params


class OneRoundOfSums(Method):
    """Base of methods that sum statistics over clients once and solve for the model."""

    averages = False

    def sums(self, message: Params, batches: Batches) -> Params:
        """Every client's sums, `(C, ...)` by name."""
        raise NotImplementedError

    def solve(self, state: State, sums: Params) -> State:
        """The model of the sums over all clients."""
        raise NotImplementedError

    @classmethod
    def num_rounds(cls, config: MethodConfig) -> int:
        return min(1, config.train.rounds)

    def message(self, state: State) -> Params:
        return {}  # clients need nothing to begin with

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        return plain_sums(self.sums(message, batches), batches), client_state

    def aggregate(self, state: State, received: Received) -> State:
        return self.solve(state, totals(received)) if received.mean else state  # else all failed
