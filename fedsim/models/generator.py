"""Text-to-image generators through diffusers: shipped, public or from a local folder, one path.

    tiny-diffusion         the pipeline inside fedsim: 32x32 px pictures of digits and letters
    stabilityai/sd-turbo   a pipeline of the hub, downloaded once
    path/to/folder         a folder that `DiffusionPipeline.save_pretrained` wrote

A folder may hold `fedsim.json` with `steps` and `guidance_scale`, the defaults to generate with.
Importing diffusers takes seconds, so it happens inside `load_generator`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fedsim.errors import ModelError, did_you_mean

PRETRAINED = Path(__file__).parent / "pretrained"
TINY_DIFFUSION = "tiny-diffusion"
DEFAULTS_FILE = "fedsim.json"

# Distilled hub models want few steps and no guidance; `variant` names their half-size files.
KNOWN_ON_HUB: dict[str, dict[str, Any]] = {
    "stabilityai/sd-turbo": {"steps": 1, "guidance_scale": 0.0, "variant": "fp16"},
    "stabilityai/sdxl-turbo": {"steps": 1, "guidance_scale": 0.0, "variant": "fp16"},
}


class Generator:
    """A text-to-image pipeline with fixed defaults.

    Attributes:
        spec: The name or path that it was loaded from.
        pipeline: The diffusers pipeline (its `vae` decodes latents for distillation in latent
            space).
        steps: Default number of denoising steps; None leaves it to the pipeline.
        guidance_scale: Default classifier-free guidance; None leaves it to the pipeline.
    """

    def __init__(
        self,
        spec: str,
        pipeline: Any,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        self.spec, self.pipeline = spec, pipeline
        self.steps, self.guidance_scale = steps, guidance_scale
        pipeline.set_progress_bar_config(disable=True)

    def at(self, steps: int | None = None, guidance_scale: float | None = None) -> Generator:
        """The same pipeline with other defaults; None keeps a default.

        Args:
            steps: Denoising steps.
            guidance_scale: Classifier-free guidance; 1 or less switches it off.
        """
        steps = self.steps if steps is None else steps
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        return Generator(self.spec, self.pipeline, steps, guidance_scale)

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], batch_size: int = 32
    ) -> np.ndarray:
        """Draws one picture per prompt.

        Picture i depends on prompt i, seed i and the settings. Its neighbours in a batch change it
        by rounding only, so the same batches give the same bytes.

        Args:
            prompts: Descriptions of the pictures.
            seeds: One seed per picture; its noise comes from a CPU generator on every device.
            batch_size: Number of pictures drawn at once.

        Returns:
            uint8 (num_images, height, width, 3).

        Raises:
            ValueError: No prompts, or another number of seeds.
        """
        drawn = self._draw(prompts, seeds, "np", batch_size)
        return np.concatenate([np.round(images * 255).astype(np.uint8) for images in drawn])

    def draw_latents(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Latents that `generate` would decode to pictures, of about unit scale, `(n, c, h, w)`."""
        return torch.cat(list(self._draw(prompts, seeds, "latent", batch_size=32)))

    def _draw(
        self, prompts: Sequence[str], seeds: Sequence[int], output_type: str, batch_size: int
    ) -> Iterator[Any]:
        """The pipeline's output, batch by batch."""
        if len(prompts) == 0 or len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts, but {len(seeds)} seeds")
        settings = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        settings = {name: value for name, value in settings.items() if value is not None}
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            with warnings.catch_warnings():
                # Schedulers pass tensors to numpy.array, which numpy 2 deprecates.
                warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
                yield self.pipeline(
                    prompt=list(prompts[batch]),
                    generator=[torch.Generator("cpu").manual_seed(int(s)) for s in seeds[batch]],
                    output_type=output_type,
                    **settings,
                ).images


def load_generator(spec: str, device: str | torch.device = "cpu") -> Generator:
    """Loads a generator; see the top of this file for what `spec` may be.

    Weights are float32 on the CPU and float16 on a GPU.

    Raises:
        ModelError: The folder is missing or broken, or the hub could not be reached.
    """
    folder = PRETRAINED / spec if spec == TINY_DIFFUSION else Path(spec).expanduser()
    local = folder.is_dir()
    if local and not (folder / "model_index.json").is_file():
        raise ModelError(
            f"the folder {folder} is no diffusers pipeline: it has no model_index.json; and no set "
            "of images: it has no folder for each class"
        )
    if not local and (spec.startswith((".", "/", "~")) or spec.count("/") != 1):
        known = did_you_mean(spec, [TINY_DIFFUSION, *KNOWN_ON_HUB])
        raise ModelError(f"no generator {spec!r}: there is no such folder; {known}")
    settings = _defaults(folder) if local else dict(KNOWN_ON_HUB.get(spec, {}))
    on_cpu = torch.device(device).type == "cpu"
    diffusers = _import_diffusers()
    try:
        with warnings.catch_warnings():
            # `dtype`, its new name, is unknown to diffusers before the summer of 2026.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            # diffusers hands its own downloader an argument that no longer does anything.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`")
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
                str(folder) if local else spec,
                low_cpu_mem_usage=diffusers.utils.is_accelerate_available(),  # else it grumbles
                variant=settings.pop("variant", None),
                torch_dtype=torch.float32 if on_cpu else torch.float16,
            ).to(device)
    except Exception as error:
        if local:
            raise ModelError(f"generator {spec!r} could not be loaded: {error}") from error
        raise ModelError(
            f"generator {spec!r} could not be downloaded from the hub: {error}\n"
            "On a machine without internet, save the pipeline elsewhere with "
            "`save_pretrained(folder)` and give that folder, or use 'tiny-diffusion'"
        ) from error
    return Generator(spec, pipeline, **settings)


def _import_diffusers() -> ModuleType:
    """Imports diffusers and silences the progress bars of loading (downloads keep theirs)."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise ModelError(
            "generators need the packages diffusers and transformers, which could not be "
            f"imported: {error}. Install fedsim with its dependencies."
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return diffusers


def _defaults(folder: Path) -> dict[str, Any]:
    """`steps` and `guidance_scale` from the folder's `fedsim.json`, if it has one."""
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    unknown = set(found) - {"steps", "guidance_scale"}
    if unknown:
        raise ModelError(f"{path}: unknown settings {sorted(unknown)}")
    return found
