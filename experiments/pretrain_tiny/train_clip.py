"""Trains tiny-clip on captioned glyphs and writes fedsim/models/pretrained/tiny-clip.

The model is open_clip's own CLIP class, only narrow, so the folder loads like any other
open_clip folder. Training sees training fonts only; the report is on held-out fonts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from glyphs import NAMES, caption
from safetensors.torch import save_file
from torch.nn import functional

from fedsim.models.clip import CONFIG_FILE, PRETRAINED, TINY_CLIP, Clip, load_clip

CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        # 32x32 px, patches of 8x8: one patch is 2x2 pixels of an 8x8 glyph.
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 64,
            "layers": 3,
            "head_width": 16,
            "mlp_ratio": 2.0,
            "pool_type": "avg",
        },
        # open_clip's standard tokeniser; at width 32 its 49,408 rows are 3.2 MB in fp16.
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glyphs", type=Path, help="the file that make_models.py writes")
    parser.add_argument("--out", type=Path, default=PRETRAINED / TINY_CLIP)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / CONFIG_FILE).write_text(json.dumps(CONFIG, indent=2) + "\n")

    model, _, transform = open_clip.create_model_and_transforms(
        f"local-dir:{args.out}", load_weights=False
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.out}")
    clip = Clip("new", model, transform, tokenizer)
    model.requires_grad_(True).train()
    train(clip, model, tokenizer, np.load(args.glyphs), args)

    # clone(): safetensors wants tensors that own their memory.
    halves = {k: v.half().clone() for k, v in model.state_dict().items() if "attn_mask" not in k}
    save_file(halves, args.out / "open_clip_model.safetensors")
    report(load_clip(str(args.out)), np.load(args.glyphs))


def train(clip: Clip, model: torch.nn.Module, tokenizer, data, args: argparse.Namespace) -> None:
    """CLIP's contrastive loss, with the many pictures of one name in a batch all positive."""
    pixels, labels = clip.prepare(data["train_x"]), torch.from_numpy(data["train_y"])
    rng = np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    no_decay = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    decay = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "embedding" in n)]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": no_decay, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda i: min((i + 1) / 100, 0.5 * (1 + math.cos(math.pi * i / args.steps))),
    )
    started = time.time()
    for step in range(args.steps):
        rows = torch.randint(len(pixels), (args.batch,), generator=generator)
        images = clip.normalise(pixels[rows])
        images = images + 0.1 * torch.rand(args.batch, 1, 1, 1, generator=generator) * torch.randn(
            images.shape, generator=generator
        )
        image_features = functional.normalize(model.visual(images), dim=-1)
        captions = tokenizer([caption(label, rng) for label in range(len(NAMES))])
        text_features = functional.normalize(model.encode_text(captions), dim=-1)
        logits = model.logit_scale.exp() * image_features @ text_features.T  # (B, num_names)
        loss_of_images = functional.cross_entropy(logits, labels[rows])
        present = labels[rows].unique()
        positive = (labels[rows] == present[:, None]).float()  # (num_present, B)
        loss_of_texts = functional.cross_entropy(
            logits.T[present], positive / positive.sum(1, keepdim=True)
        )
        loss = (loss_of_images + loss_of_texts) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0 or step == args.steps - 1:
            right = (logits.argmax(1) == labels[rows]).float().mean()
            print(
                f"step {step:5d}  loss {loss:.3f}  right {right:.3f}  "
                f"scale {model.logit_scale.exp():.1f}  {time.time() - started:.0f} s",
                flush=True,
            )


def report(clip: Clip, data) -> None:
    """Zero-shot accuracy on fonts that were not trained on."""
    features = clip.encode_images(clip.prepare(data["held_x"]))
    labels = torch.from_numpy(data["held_y"])
    texts = clip.class_embeddings(NAMES, ["a photo of a {}"])
    found = (features @ texts.T).argmax(1)
    digits = labels < 10
    among_ten = (features[digits] @ texts[:10].T).argmax(1)
    print(f"held-out fonts: {(found == labels).float().mean():.3f} of {len(NAMES)} names")
    print(f"held-out fonts: {(among_ten == labels[digits]).float().mean():.3f} of 10 digits")


if __name__ == "__main__":
    main()
