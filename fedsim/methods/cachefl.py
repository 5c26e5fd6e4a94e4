"""CacheFL (Yi et al., arXiv 2505.05130): clients fine-tune a small cache beside a frozen CLIP.

Notation, and the paper's symbols (Tip-Adapter's where CacheFL's text does not give them):

    keys      W1   (N*K, d)   features of the server's generated images, trained
    values    W2   (N*K, N)   the keys' one-hot labels, fixed unless cache.trainable names them
    text           (N, d)     frozen class embeddings
    sharpness      beta       residual_ratio  alpha

    affinity = exp(-beta * (1 - f keys^T))
    logits   = scale * f text^T + alpha * affinity values

    server:  keys <- features of a class-balanced generated set             (section 3, step 1-2)
    round:   every client fine-tunes the keys on its own images             (step 3)
             keys <- sum_k (n_k / n) keys_k

The paper states: images are generated from "a photo of a [CLASS]", keys are encoder features,
clients fine-tune, the server averages. It does not state the following choices: values stay fixed,
keys are not re-normalised, the mean is weighted by samples. `cache.init` replaces the generated
keys in controls; only `generated` is CacheFL.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config import MethodConfig
from fedsim.errors import ConfigError
from fedsim.methods.base import Batches, Generators, State, States, Task, Update
from fedsim.methods.shared.averaged import AveragedModel
from fedsim.methods.shared.dual import train_keys
from fedsim.methods.shared.require import require_text
from fedsim.models.cache import cache_logits, text_logits
from fedsim.params import Params


class CacheFL(AveragedModel):
    """Federated fine-tuning of cache keys."""

    sections: ClassVar[tuple[str, ...]] = ("cache",)

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        init = config.cache.init
        if config.method == "cachefl" and init != "generated":
            raise ConfigError(
                f"cache.init is {init!r}, but only a generated cache is called cachefl: name this "
                f"one apart, e.g. 'cache_{init}: {{use: cachefl, cache.init: {init}}}'"
            )

    @classmethod
    def needs_synthetic(cls, config: MethodConfig) -> bool:
        return config.cache.init in ("generated", "mixed")

    @classmethod
    def needs_public(cls, config: MethodConfig) -> bool:
        return config.cache.init in ("public_shots", "mixed")

    def setup(self, task: Task, rng: torch.Generator) -> State:
        text = require_text(task)
        keys, labels = initial_keys(task, text, rng)
        values = F.one_hot(labels, task.num_classes).to(keys.dtype)
        cache = self.config.cache
        # As logarithms, so that training keeps both above 0.
        scales = torch.tensor([cache.residual_ratio, cache.sharpness], device=keys.device).log()
        return {"keys": keys, "values": values, "labels": labels, "scales": scales, "text": text}

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the tensors that clients train and send."""
        return ("keys", *_TRAINED_BESIDE_KEYS[self.config.cache.trainable])

    def constants(self, state: State) -> Params:
        sent = ("text", "labels") if "values" in self.trained else ("text", "values")
        return {k: state[k] for k in sent}

    def is_trained(self, name: str) -> bool:
        return name in self.trained

    def class_rows(self, message: Params) -> Params:
        classes = message["labels"] if "labels" in message else message["values"].argmax(1)
        return {k: classes for k in self.trained if k != "scales"}

    def client_update(
        self, message: Params, batches: Batches, client_state: States, rng: Generators
    ) -> tuple[Update, States]:
        cache, text, scale = self.config.cache, message["text"], self.task.logit_scale
        if cache.form != "dual":
            return super().client_update(message, batches, client_state, rng)
        update = train_keys(
            message["keys"],
            message["values"],
            lambda f: text_logits(f, text, scale),
            cache.residual_ratio,
            cache.sharpness,
            batches,
        )
        return update, client_state

    def local_flops(self, message: Params, batches: Batches, one_sample: int) -> Tensor:
        linear, n = super().local_flops(message, batches, one_sample), batches.num_samples
        if self.config.cache.form != "dual":
            return linear
        # The cosines of all pairs of samples, and the share that every sample adds to later ones;
        # in the first epoch only to samples of later steps.
        num_keys, dim = message["keys"].shape
        pairs, size = n.square() - n, batches.train.batch_size
        together = (n // size) * size**2 + (n % size).square()
        later = (batches.train.epochs(1) - 1) * pairs + (n.square() - together) / 2
        return linear + 2 * dim * pairs + 2 * num_keys * later

    def logits(self, model: Params, x: Tensor) -> Tensor:
        ratio: float | Tensor = self.config.cache.residual_ratio
        sharpness: float | Tensor = self.config.cache.sharpness
        if "scales" in self.trained:
            ratio, sharpness = model["scales"].exp()[..., None, None].unbind(-3)
        known = text_logits(x, model["text"], self.task.logit_scale)
        return known + ratio * cache_logits(x, model["keys"], model["values"], sharpness)


_TRAINED_BESIDE_KEYS = {"keys": (), "keys_values": ("values",), "keys_scales": ("scales",)}


def initial_keys(task: Task, text: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys `(num_keys, d)` of unit length and their labels `(num_keys,)`, sorted by class."""
    k, n = task.config.cache.images_per_class, task.num_classes
    match task.config.cache.init:
        case "text":  # one key per class, as a second would be equal
            return text.clone(), torch.arange(n, device=task.device)
        case "random":
            keys = torch.randn(n * k, task.embed_dim, generator=rng).to(task.device)
            labels = torch.arange(n, device=task.device).repeat_interleave(k)
            return F.normalize(keys, dim=-1), labels
        case "generated":
            source = task.synthetic
        case "public_shots":
            source = task.public
        case "mixed":
            return _mixed_keys(task)
    assert source is not None, "needs_synthetic and needs_public ask for it"
    return source.inputs.clone(), source.labels


def _mixed_keys(task: Task) -> tuple[Tensor, Tensor]:
    """K keys per class: public images first, up to their share, then generated images.

    A class has at most 4 public images. Where these are fewer than the share, generated images take
    their places, so that the cache stays balanced.
    """
    cache, made, public = task.config.cache, task.synthetic, task.public
    assert made is not None, "see needs_synthetic"
    assert public is not None, "see needs_public"
    k = cache.images_per_class
    real = min(max(round(cache.real_fraction * k), 1), k - 1)
    keys = []
    for label in range(task.num_classes):
        shots = public.inputs[public.labels == label][:real]
        keys += [shots, made.inputs[made.labels == label][: k - len(shots)]]
    return torch.cat(keys), torch.arange(task.num_classes, device=task.device).repeat_interleave(k)
