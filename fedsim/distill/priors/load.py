"""The prior that a configuration names, loaded where it is used."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fedsim.config.distill import DistillConfig
from fedsim.config.sections import ModelsConfig, SyntheticConfig
from fedsim.data.containers import DEFAULT_TEMPLATES
from fedsim.distill.priors.base import LoadPrior, Prior, Prompts, Request
from fedsim.distill.priors.pixels import NoisePixels
from fedsim.errors import ConfigError
from fedsim.models.networks import Shape


@functools.lru_cache(maxsize=2)
def load_prior(settings: DistillConfig, prompts: Prompts, shape: Shape, device: str) -> Prior:
    """The configured prior; the last ones used are kept.

    Args:
        settings: The block `distill`.
        prompts: The request to the generator.
        shape: `(c, h, w)` of the data.
        device: The device that the prior computes on.

    Raises:
        ConfigError: The settings do not go together, or the GAN's file is wrong.
        ModelError: The generator cannot be loaded.
    """
    request = Request(settings.prior, prompts, shape, device)
    prior: Prior = settings.module().load(settings.options(), request)
    return prior


def image_priors(
    settings: DistillConfig, prompts: Prompts, shape: Shape, device: str
) -> tuple[LoadPrior, LoadPrior]:
    """Loaders of the configured prior and of one without knowledge, its noise control.

    See `load_prior`.
    """
    prior = functools.partial(load_prior, settings, prompts, shape, device)
    return prior, functools.partial(NoisePixels, shape, device)


def prompts_of(
    distill: DistillConfig,
    synthetic: SyntheticConfig,
    models: ModelsConfig,
    templates: Sequence[str] | None,
    classnames: Sequence[str],
) -> Prompts:
    """The request to a prior's generator.

    Args:
        distill: Its prior may have words of its own for the classes.
        synthetic: Its first prompt is the template.
        models: The generator and its sampling.
        templates: The data's templates, for a `synthetic` without prompts.
        classnames: The words that the generator draws by default.

    Raises:
        ConfigError: `distill.words` are not one per class.
    """
    words = getattr(distill.options(), "words", None) or classnames
    if len(words) != len(classnames):
        raise ConfigError(f"distill.words has {len(words)} words for {len(classnames)} classes")
    template = (synthetic.prompts or templates or DEFAULT_TEMPLATES)[0]
    texts = class_prompts(words, template)
    return Prompts(models.generator, texts, models.generator_steps, models.generator_guidance)


def class_prompts(words: Sequence[str], template: str) -> tuple[str, ...]:
    """One prompt per class.

    >>> class_prompts(["sea_lion"], "a photo of a {}")
    ('a photo of a sea lion',)
    """
    return tuple(template.replace("{}", word.replace("_", " ")) for word in words)
