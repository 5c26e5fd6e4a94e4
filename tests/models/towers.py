"""Small image towers of other kinds than tiny-clip's, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.models.clip import PRETRAINED, Clip, load_clip


def variant(folder: Path, name: str, **changes: Any) -> Clip:
    """tiny-clip's architecture with sections of its configuration changed; random weights."""
    import open_clip

    config = json.loads((PRETRAINED / "tiny-clip" / "open_clip_config.json").read_text())
    (folder / f"{name}.json").write_text(json.dumps(config["model_cfg"] | changes))
    open_clip.add_model_config(folder)
    return load_clip(f"{name}/random")


def resnet(folder: Path) -> Clip:
    """CLIP's ResNet with four small blocks, and BatchNorm statistics as after some training."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    clip = variant(folder, "fedsim-tests-resnet", vision_cfg=vision)
    norms = [module for module in clip.visual.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.ones_(norm.weight)  # a fresh tower ends its blocks with zeros
        norm.momentum = 1.0
    clip.visual.train()
    clip.visual(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    clip.visual.eval()
    return clip
