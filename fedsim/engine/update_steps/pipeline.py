"""The update steps of one run, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedsim.config import Experiment
from fedsim.config.families import UPDATE_STEPS, load_part
from fedsim.engine.update_steps.base import GroupContext, Place, Sent, UpdateStep
from fedsim.errors import ConfigError, ExecutionError
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
            if not isinstance(getattr(step, "place", None), Place):
                raise ConfigError(f"update step {name!r} in {where} has no place in the order")
            if step.section is not None and step.section not in type(config).model_fields:
                raise ConfigError(
                    f"update step {name!r} reads {step.section!r}, which is no section"
                )
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
            before = replace(sent, update=sent.update.formed())
            own = replace(group, kept=[client.get(name, {}) for client in kept], step=name)
            sent = step.on_clients(before, own)
            if wrong := _wrong(name, before, sent):
                raise ValueError(f"update step {name!r} {wrong}")
        return sent

    def on_server(self, received: Received, method: Method, download: Params) -> Received:
        """The average after the server sides of all steps."""
        for name, step in reversed(self.steps.items()):
            received = step.on_server(received, method, download)
            if not isinstance(received, Received):
                raise ExecutionError(
                    f"update step {name!r}: on_server returned a {type(received).__name__}"
                )
        if self.one_by_one and received.kept and not received.mean and method.reduction == "sum":
            raise ExecutionError("no update step has made a mean of the updates that were kept")
        return received


def _wrong(name: str, before: Sent, after: Sent) -> str:
    """What a step has broken of the updates that it was given; '' for nothing."""
    if not isinstance(after, Sent):
        return f"returned a {type(after).__name__}"
    shapes = [
        {key: (tuple(v.shape), v.dtype) for key, v in sent.update.delta.items()}
        for sent in (before, after)
    ]
    if shapes[0] != shapes[1]:
        changed = sorted(
            k for k in shapes[0].keys() | shapes[1] if shapes[0].get(k) != shapes[1].get(k)
        )
        key = changed[0]
        return f"made {shapes[1].get(key)} of tensor {key!r}, which was {shapes[0].get(key)}"
    if after.update.weight.shape != before.update.weight.shape:
        return f"made weights of shape {tuple(after.update.weight.shape)}"
    for what in ("beside", "kept"):
        old, new = getattr(before, what), getattr(after, what)
        if lost := old.keys() - new.keys():
            return f"lost what step {sorted(lost)[0]!r} has {what}: add to the dict"
        if foreign := new.keys() - old.keys() - {name}:
            return f"has {what} under {sorted(foreign)[0]!r}: use its own name"
    return ""
