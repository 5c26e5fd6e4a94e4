"""The steps towards a run's inputs, in order: everything that is computed before any client trains.

    data        labels and inputs of every split: features, pixels or raw images
    views       more forms of the training images, where `train.augment_views` asks for them
    noise       what spoilt clients train on, where `noise` is active
    synthetic   the server's generated images, for methods that need them
    fitted      these at the data's size, for networks trained from scratch

Each step is an entry of the node's shared store. `prepare` takes a run's steps one after the other;
the checks before the first run ask the same steps for their keys.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fedsim.config import Experiment
from fedsim.data.from_config import DataSource
from fedsim.inputs.augmented_views import check_views, views_step
from fedsim.inputs.data_arrays import InputKind, data_step, meta_of
from fedsim.inputs.draw_images import Draw
from fedsim.inputs.encode import Encoder, Extract, Progress, extract_here
from fedsim.inputs.noisy_clients import noise_step
from fedsim.inputs.raw_images import fitted_step
from fedsim.inputs.run_inputs import RunInputs
from fedsim.inputs.synthetic_set import synthetic_step
from fedsim.methods.base import Method
from fedsim.storage.array_cache import InputStep, arrays_of


class InputSteps:
    """The steps of one run. Nothing is computed before it is asked for.

    Args:
        config: The resolved experiment.
        method: Its method, which says what it needs.
        device: Where encoder and generator run.
        extract: Where images of the data are encoded.
        progress: Called with the number of encoded images.
        source: The data set, if the caller carries it already.

    Attributes:
        real: Data, views and noise, as far as the run asks for them.
        measured: Steps to features of all images, if sets made in rounds are compared with them.

    Raises:
        ConfigError: The run asks for views and cannot use them.
    """

    def __init__(
        self,
        config: Experiment,
        method: type[Method],
        device: str = "cpu",
        extract: Extract = extract_here,
        progress: Progress | None = None,
        source: DataSource | None = None,
    ) -> None:
        self._config, self._method, self._device = config, method, device
        self.source = source or DataSource(config.data, config.partition_seed)
        spec, name = config.models.clip, config.method
        self._encoder = Encoder(spec, self.source, name, device, extract, progress)
        self.real = self._real(method.inputs, method.uses_clients)
        measures = config.evaluation.set_quality and method.made is not Method.made
        self.measured = self._real("features", True) if measures else ()

    def _real(self, inputs: InputKind, trained_on: bool) -> tuple[InputStep, ...]:
        """The steps to the clients' training data; without clients, to the data alone."""
        config, train = self._config, self._config.train
        data = data_step(inputs, self._encoder)
        steps = [data]
        if trained_on and train.augment_views > 1:
            check_views(inputs, config.noise, config.method)
            views = train.augment_views, train.augment_flip
            steps.append(views_step(*views, data, self._encoder))
        if trained_on and config.noise.active:
            steps.append(noise_step(data, self._encoder, config.for_partition()))
        return tuple(steps)

    def inputs(self) -> RunInputs:
        """All that clients may see, from the store or computed now."""
        meta, scale = meta_of(self.real[0]), self._config.models.logit_scale
        if scale is not None:
            meta["logit_scale"] = scale
        arrays = arrays_of(self.real)
        del arrays["meta"]
        *_, trained_on = (step for step in self.real if step.key["kind"] != "views")
        return RunInputs(
            arrays,
            meta,
            address=trained_on.address,
            source=self.source,
            split_by=self._config.for_partition(),
            measured=self.measured,
            keys=tuple(step.key for step in self.real),
        )

    def synthetic(self, data: RunInputs, draw: Draw | None = None) -> list[InputStep]:
        """The generated set, if the method needs one; then its images at the data's size.

        Args:
            data: What `inputs` returns: its classes are what images are asked for.
            draw: Where images are drawn; by default in this process.
        """
        config = self._config.for_method()
        if not self._method.needs_synthetic(config):
            return []
        asked = config.models, config.synthetic, config.cache.images_per_class, config.train_seed
        text = data.arrays.get("text_features")
        made = synthetic_step(*asked, data.meta, text, self._device, draw)
        if self._method.inputs != "images":
            return [made]
        channels, height, width = data.arrays["train_inputs"].shape[1:]
        return [made, fitted_step(made, (channels, height, width))]


def prepare(
    config: Experiment,
    method: type[Method],
    device: torch.device,
    synthetic: bool = True,
    draw: Draw | None = None,
    extract: Extract = extract_here,
    progress: Progress | None = None,
) -> RunInputs:
    """All arrays a run needs, from the store or computed now (see `InputSteps`).

    Args:
        config: The resolved experiment.
        method: Its method.
        device: Where encoder and generator run.
        synthetic: Whether the caller may see the server's generated images.
        draw: Where these are drawn; by default in this process.
        extract: Where images of the data are encoded.
        progress: Called with the number of encoded images.

    Raises:
        DataError: If the data cannot be read.
        ModelError: If encoder or generator cannot be loaded.
        ConfigError: If the method, the noise or the views need images and the data holds features,
            or the method needs an encoder and there is none, or has no use for views.
    """
    steps = InputSteps(config, method, str(device), extract, progress)
    data = steps.inputs()
    generated = steps.synthetic(data, draw) if synthetic else []
    if not generated:
        return data
    made, *fitted = generated
    return replace(
        data,
        synthetic=made.arrays | ({"fitted": fitted[0].arrays["images"]} if fitted else {}),
        synthetic_address=made.address,
        keys=(*data.keys, *(step.key for step in generated)),
    )
