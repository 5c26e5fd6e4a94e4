"""The update steps of one run, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedsim.config import Experiment
from fedsim.config.families import UPDATE_STEPS, load_part
from fedsim.engine.update_steps.base import GroupContext, Sent, UpdateStep
from fedsim.methods.base import Method, Received, Update
from fedsim.params import Params


class Pipeline:
    """Update steps by name; they are put in order."""

    def __init__(self, steps: dict[str, UpdateStep]) -> None:
        self.steps = dict(sorted(steps.items(), key=lambda item: (item[1].place, item[0])))

    @classmethod
    def of(cls, config: Experiment) -> Pipeline:
        """The steps of `UPDATE_STEPS` that the experiment's sections ask for."""
        found = {}
        for name, where in UPDATE_STEPS.items():
            step = load_part(where)
            settings = None if step.section is None else getattr(config, step.section)
            if step.wanted(settings):
                found[name] = step(settings)
        return cls(found)

    @property
    def one_by_one(self) -> bool:
        """Whether a step needs the updates one by one instead of their sum."""
        return any(step.one_by_one for step in self.steps.values())

    def on_clients(
        self, update: Update, group: GroupContext, kept: Sequence[dict[str, Params]]
    ) -> Sent:
        """A group's updates after all steps; `kept` has per client the tensors of each step."""
        sent = Sent(update)
        for name, step in self.steps.items():
            sent = replace(sent, update=sent.update.formed())
            own = replace(group, kept=[client.get(name, {}) for client in kept])
            sent = step.on_clients(sent, own)
        return sent

    def on_server(self, received: Received, method: Method, download: Params) -> Received:
        """The average after the server sides of all steps."""
        for step in reversed(self.steps.values()):
            received = step.on_server(received, method, download)
        return received
