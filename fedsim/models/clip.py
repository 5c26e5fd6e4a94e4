"""Frozen CLIP through open_clip: one loading path for the shipped, the public and local weights.

    tiny-clip              the weights inside fedsim: 118,000 image parameters, 32x32 px, glyphs
    ViT-B-32/openai        an open_clip architecture and one of its weight tags, downloaded once
    ViT-B-32/random        the same with random weights (timing and memory tests)
    ViT-B-32@/path/to.pt   the same with a checkpoint from disk
    hf-hub:org/repo        an open_clip repository of the hub
    path/to/folder         a folder with open_clip_config.json and open_clip_model.safetensors

Importing open_clip takes seconds, so it happens inside `load_clip`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fedsim.errors import DataError, ModelError, did_you_mean

PRETRAINED = Path(__file__).parent / "pretrained"
TINY_CLIP = "tiny-clip"
CONFIG_FILE = "open_clip_config.json"


class Clip:
    """A CLIP model that only answers questions: evaluation mode, no gradients.

    Attributes:
        spec: The name or path that it was loaded from.
        embed_dim: Length of a feature vector.
        image_size: Side of the square input, px.
        logit_scale: The trained inverse temperature (about 100 for public CLIP models).
        visual: The image tower, float32. Its forward pass works under
            `torch.func.functional_call` and `vmap(grad(...))` over stacked parameters.
        visual_bytes: Bytes of its parameters and buffers.
        model: All of the model, as open_clip makes it.
        tokenizer: Texts -> token ids `(num_texts, context_length)`.
        text_bytes: Bytes of the text tower, its token table included.
    """

    def __init__(self, spec: str, model: Any, transform: Any, tokenizer: Callable) -> None:
        self.spec = spec
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.visual: torch.nn.Module = model.visual
        _BatchableAttention(self.visual)
        # The official transform is [resize, crop, to RGB, to tensor, normalise].
        *steps, _to_tensor, normalise = transform.transforms
        self._resize = steps
        self._mean = torch.tensor(normalise.mean)[:, None, None]
        self._std = torch.tensor(normalise.std)[:, None, None]
        size = self.visual.image_size
        high, wide = (size, size) if isinstance(size, int) else size
        if high != wide:
            raise ModelError(f"CLIP {spec!r} wants {high}x{wide} px; fedsim needs a square input")
        self.image_size = int(high)
        self.logit_scale = float(model.logit_scale.exp())
        self.embed_dim = int(self.encode_texts(["a"]).shape[1])
        tensors = [*self.visual.parameters(), *self.visual.buffers()]
        self.visual_bytes = sum(t.numel() * t.element_size() for t in tensors)
        text = (v for k, v in model.state_dict().items() if not k.startswith(("visual.", "logit_")))
        self.text_bytes = sum(t.numel() * t.element_size() for t in text)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.logit_scale.device

    def prepare(self, images: np.ndarray | Sequence[Image.Image]) -> torch.Tensor:
        """Resizes and crops raw images exactly as the model's own transform does, with PIL.

        Args:
            images: uint8 (num_images, height, width) or (num_images, height, width, 3), or a
                list of PIL images of any sizes and modes.

        Returns:
            uint8 pixels (num_images, 3, image_size, image_size) on the CPU: a quarter of the
            memory of the floats that `normalise` makes of them.
        """
        if isinstance(images, np.ndarray):
            grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
            if images.dtype != np.uint8 or not grey_or_rgb:
                raise DataError(
                    "images must be uint8 (num_images, height, width) or (num_images, height, "
                    f"width, 3), not {images.dtype} {images.shape}"
                )
            images = [Image.fromarray(image) for image in images]
        pixels = np.empty((len(images), self.image_size, self.image_size, 3), np.uint8)
        for row, picture in zip(pixels, images, strict=True):
            for step in self._resize:
                picture = step(picture)
            row[:] = np.asarray(picture)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels (..., 3, S, S) -> the float32 input of `visual`, on the same device."""
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return (pixels.float() / 255 - mean) / std

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
        """Features of prepared uint8 pixels (n, 3, S, S): float32 (n, embed_dim), of length 1."""
        if len(pixels) == 0:
            return torch.empty(0, self.embed_dim, device=self.device)
        return torch.cat([self.embed(part.to(self.device)) for part in pixels.split(batch_size)])

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """One batch of uint8 pixels on the model's device -> unit features; differentiable."""
        return functional.normalize(self.visual(self.normalise(pixels)).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Features of prompts: float32 (num_prompts, embed_dim), each of length 1."""
        tokens = self.tokenizer(list(prompts)).to(self.device)
        return functional.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def class_embeddings(self, classnames: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """CLIP's zero-shot classifier: per class the mean over templates, of length 1 again.

        Args:
            classnames: One name per class; an underscore reads as a space.
            templates: Prompts with one `{}` for the name.

        Returns:
            float32 (num_classes, embed_dim). Logits are
            `logit_scale * features @ class_embeddings.T`.
        """
        rows = []
        for name in classnames:
            prompts = [template.format(name.replace("_", " ")) for template in templates]
            rows.append(self.encode_texts(prompts).mean(0))
        return functional.normalize(torch.stack(rows), dim=-1)


def load_clip(spec: str, device: str | torch.device = "cpu") -> Clip:
    """Loads a CLIP model; see the top of this file for what `spec` may be.

    Raises:
        ModelError: The name is unknown, a folder or file is missing or broken, or weights
            could not be downloaded.
    """
    open_clip = _import_open_clip()
    name, weights = _resolve(spec, open_clip)
    tag = open_clip.get_pretrained_cfg(name, weights) if isinstance(weights, str) else {}
    try:
        # Building a model draws its initial weights from the global generator, even if a
        # checkpoint replaces them. The caller's generator is kept, and `/random` is repeatable.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.default_generator.manual_seed(0)
            warnings.filterwarnings("ignore", "QuickGELU mismatch", UserWarning)
            model, _, transform = open_clip.create_model_and_transforms(
                name,
                pretrained=weights,
                device=device,
                # Plain architecture names default to GELU; OpenAI's weights need QuickGELU.
                force_quick_gelu=bool(tag.get("quick_gelu")),
                require_pretrained=not spec.endswith("/random"),
                pretrained_text=False,
            )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise ModelError(_explain(spec, tag, error)) from error
    return Clip(spec, model, transform, tokenizer)


def _import_open_clip() -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise ModelError(
            "CLIP models need the package open_clip_torch, which could not be imported: "
            f"{error}. Install fedsim with its dependencies."
        ) from error
    return open_clip


def _resolve(spec: str, open_clip: ModuleType) -> tuple[str, str | None]:
    """A spec -> open_clip's `model_name` and `pretrained`."""
    if spec == TINY_CLIP:
        return f"local-dir:{PRETRAINED / TINY_CLIP}", None
    if spec.startswith("hf-hub:"):
        return spec, None
    folder = Path(spec).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            raise ModelError(f"the folder {folder} is no CLIP model: it has no {CONFIG_FILE}")
        return f"local-dir:{folder}", None
    name, at, file = spec.partition("@")
    tag = "random"
    if at:
        if not Path(file).expanduser().is_file():
            raise ModelError(f"CLIP {spec!r}: there is no checkpoint file {file}")
    elif "/" in spec:
        name, tag = spec.rsplit("/", 1)
    if spec.startswith((".", "/", "~")):
        raise ModelError(f"no CLIP model {spec!r}: there is no such folder")
    name = name.replace("/", "-")
    known = open_clip.list_models()
    if name not in known:
        raise ModelError(
            f"no CLIP model {spec!r}: it is neither a folder nor an open_clip architecture; "
            + did_you_mean(name, [TINY_CLIP, *known])
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if at:
        return name, str(Path(file).expanduser())
    if "/" not in spec:
        raise ModelError(
            f"CLIP {spec!r} names no weights; write {name}/TAG with one of: {', '.join(tags)}"
        )
    if tag == "random":
        return name, None
    if tag not in tags:
        raise ModelError(f"CLIP {name} has no weights {tag!r}; {did_you_mean(tag, tags)}")
    return name, tag


def _explain(spec: str, tag: dict, error: Exception) -> str:
    """The message for weights that open_clip could not load."""
    if not tag and not spec.startswith("hf-hub:"):
        return f"CLIP {spec!r} could not be loaded: {error}"
    source = (tag.get("hf_hub") or tag.get("url") or spec).rstrip("/")
    return (
        f"CLIP {spec!r} could not be downloaded (tried {source}): {error}\n"
        "On a machine without internet, download the weights elsewhere and give a local "
        f"folder with {CONFIG_FILE} and open_clip_model.safetensors, or a checkpoint as "
        "NAME@/path/to/weights.pt"
    )


class _ContiguousAttention(TorchFunctionMode):
    """Attention on inputs that are contiguous in the order of reading.

    `nn.MultiheadAttention` transposes batch and tokens. Under vmap, with weights of each client's
    own, torch 2.15 then multiplies by weights that it has copied once per token: 8.5 GB for two
    clients of a ViT-B/32, which needs 0.2.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is functional.multi_head_attention_forward:
            # Query, key and value are often one tensor, which the function asks for by identity.
            first = {id(x): x.contiguous() for x in args[:3]}
            args = (*(first[id(x)] for x in args[:3]), *args[3:])
        return func(*args, **(kwargs or {}))


class _BatchableAttention:
    """Hooks that let a tower's attention run under vmap.

    torch's fused attention kernels have no batching rule (torch 2.15 warns and loops). Inside a
    `torch.func` transform the tower uses the plain formula, otherwise torch's own choice.
    """

    def __init__(self, tower: torch.nn.Module) -> None:
        self._contexts: list[ExitStack] = []
        tower.register_forward_pre_hook(self.before)
        tower.register_forward_hook(self.after, always_call=True)

    def before(self, module: torch.nn.Module, args: tuple) -> None:
        transformed = torch._C._functorch.maybe_current_level() is not None
        context = ExitStack()
        if transformed:
            context.enter_context(sdpa_kernel(SDPBackend.MATH))
            context.enter_context(_ContiguousAttention())
        self._contexts.append(context)

    def after(self, module: torch.nn.Module, args: tuple, output: Any) -> None:
        self._contexts.pop().close()
