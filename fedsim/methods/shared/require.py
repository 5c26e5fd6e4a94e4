"""What a method cannot do without: text features, an encoder, plain SGD."""

from __future__ import annotations

from torch import Tensor

from fedsim.config import TrainConfig
from fedsim.errors import ConfigError
from fedsim.methods.base import Task
from fedsim.models.clip import Clip


def require_text(task: Task) -> Tensor:
    """The class embeddings `(N, d)`.

    Raises:
        ConfigError: If the data holds no text features and there is no CLIP to make them.
    """
    if task.text_features is None:
        raise ConfigError(
            f"method {task.config.method!r} needs text features, which "
            f"{task.config.data.name!r} does not hold: set models.clip, add them to the file, or "
            f"set data.prototype_shots"
        )
    return task.text_features


def require_clip(task: Task, purpose: str) -> Clip:
    """The frozen encoder.

    Args:
        task: The task.
        purpose: What the method does with the encoder, such as "trains the image encoder".

    Raises:
        ConfigError: If the data holds features that are computed already.
    """
    if task.load_clip is None:
        raise ConfigError(
            f"method {task.config.method!r} {purpose}, but {task.config.data.name!r} holds "
            f"precomputed features: use images and models.clip"
        )
    return task.load_clip()


def require_sgd(train: TrainConfig, use: str) -> None:
    """Refuse an optimiser whose steps are not proportional to gradients.

    Raises:
        ConfigError: It names the method by its implementation, `use`.
    """
    if train.optimizer != "sgd":
        raise ConfigError(
            f"{use} divides by the length of local steps, and {train.optimizer} does not keep that "
            f"length: set train.optimizer to sgd"
        )
