"""Zero-shot CLIP (Radford et al., 2021): the text classifier, untrained. Nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedsim.methods.base import Method, Predictor, State, Task
from fedsim.methods.shared.require import require_text
from fedsim.models.cache import text_logits


class ZeroShot(Method):
    """One evaluation at round 0."""

    trains = False
    uses_clients = False
    zero_shot = True

    def setup(self, task: Task, rng: torch.Generator) -> State:
        return {"text": require_text(task)}

    def predictor(self, state: State, client_state: Mapping[str, Any] | None = None) -> Predictor:
        return lambda x: text_logits(x, state["text"], self.task.logit_scale)
