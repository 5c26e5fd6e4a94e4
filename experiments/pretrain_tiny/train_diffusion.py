"""Trains tiny-diffusion on captioned glyphs: a complete, narrow StableDiffusionPipeline.

Three parts, all stock diffusers and transformers classes: a word-level CLIP tokeniser and text
encoder, an autoencoder (32x32 RGB <-> 8x8x4 latents) and a conditional U-Net with v-prediction.
It sees the training fonts that tiny-clip sees, never a handwritten digit.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from glyphs import ANY_TEMPLATES, DIGIT_TEMPLATES, NAMES, caption
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fedsim.models.generator import DEFAULTS_FILE, PRETRAINED, TINY_DIFFUSION

NO_CAPTION = 0.1  # share of training captions replaced by "", for classifier-free guidance
DIGIT_SHARE = 0.8  # of a batch; the rest keeps letters and symbols in the vocabulary
DEFAULTS = {"steps": 6, "guidance_scale": 1.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glyphs", type=Path, help="the file that make_models.py writes")
    parser.add_argument("--out", type=Path, default=PRETRAINED / TINY_DIFFUSION)
    parser.add_argument("--vae-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    data = np.load(args.glyphs)
    images, labels = pixels(data["train_x"]), data["train_y"]
    vae = train_autoencoder(images, args)
    pipeline = build_pipeline(vae, make_tokenizer())
    train_unet(pipeline, encode(vae, images), labels, args)
    save(pipeline, args.out)
    (args.out / DEFAULTS_FILE).write_text(json.dumps(DEFAULTS, indent=2) + "\n")


def pixels(glyphs: np.ndarray) -> torch.Tensor:
    """(n, 8, 8) uint8 -> (n, 3, 32, 32) uint8, enlarged as tiny-clip enlarges them."""
    large = [Image.fromarray(g).resize((32, 32), Image.Resampling.BICUBIC) for g in glyphs]
    return torch.from_numpy(np.stack(large))[:, None].expand(-1, 3, -1, -1)


def signed(batch: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in -1..1, the range of diffusers' autoencoders."""
    return batch.float() / 127.5 - 1


def train_autoencoder(images: torch.Tensor, args: argparse.Namespace) -> AutoencoderKL:
    """Reconstruction plus a slight pull to N(0, 1); frozen afterwards."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 16),
        layers_per_block=0,  # the decoder always has one more; half the time of one
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    optimiser = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = cosine(optimiser, args.vae_steps)
    started = time.time()
    for step in range(args.vae_steps):
        batch = signed(images[torch.randint(len(images), (16,))])
        posterior = vae.encode(batch).latent_dist
        error = functional.mse_loss(vae.decode(posterior.sample()).sample, batch)
        loss = error + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        take_step(loss, vae, optimiser, schedule)
        if step % 200 == 0 or step == args.vae_steps - 1:
            print(f"vae {step:5d}  mse {error:.4f}  {time.time() - started:.0f} s", flush=True)
    vae.eval().requires_grad_(False)
    # Latents of standard deviation 1 are what the noise schedule is made for.
    sample = vae.encode(signed(images[:2000])).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / sample.std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """All pictures -> scaled latents (n, 4, 8, 8)."""
    parts = [vae.encode(signed(part)).latent_dist.mean for part in images.split(1000)]
    return torch.cat(parts) * vae.config.scaling_factor


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokeniser whose merges know the words of our captions; other words become bytes."""
    words = " ".join((*ANY_TEMPLATES, *DIGIT_TEMPLATES, *NAMES)).replace("{}", "")
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        special_tokens=[start, end],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([words], trainer)
    learned = json.loads(bpe.to_str())["model"]
    # A byte may also end a word: add what the trainer did not meet, so that nothing is unknown.
    tokens = dict.fromkeys(sorted(learned["vocab"], key=learned["vocab"].get))
    tokens |= dict.fromkeys(byte + "</w>" for byte in sorted(alphabet))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        model_max_length=16,
    )


def build_pipeline(vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The untrained pipeline around a trained autoencoder."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=4,  # the number of heads, by diffusers' historical misnomer
    )
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train_unet(
    pipeline: StableDiffusionPipeline,
    latents: torch.Tensor,
    labels: np.ndarray,
    args: argparse.Namespace,
) -> None:
    """Velocity matching (Salimans and Ho 2022); the pipeline gets the averaged weights."""
    unet, text_encoder, tokenizer = pipeline.unet, pipeline.text_encoder, pipeline.tokenizer
    rng = np.random.default_rng(args.seed)
    both = torch.nn.ModuleList([unet, text_encoder]).train()
    average = EMAModel(both.parameters(), decay=0.998)
    optimiser = torch.optim.AdamW(both.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = cosine(optimiser, args.steps)
    alphas = pipeline.scheduler.alphas_cumprod
    digits, others = np.flatnonzero(labels < 10), np.flatnonzero(labels >= 10)
    started, seen = time.time(), 0.0
    for step in range(args.steps):
        rows = np.where(
            rng.random(args.batch) < DIGIT_SHARE,
            rng.choice(digits, args.batch),
            rng.choice(others, args.batch),
        )
        captions = [caption(labels[row], rng) for row in rows]
        captions = [text if rng.random() >= NO_CAPTION else "" for text in captions]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        states = text_encoder(tokens.input_ids)[0]
        clean, noise = latents[rows], torch.randn(args.batch, *latents.shape[1:])
        times = torch.randint(len(alphas), (args.batch,))
        alpha = alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        loss = functional.mse_loss(unet(noisy, times, states).sample, velocity)
        take_step(loss, both, optimiser, schedule)
        average.step(both.parameters())
        seen = loss.item() if step == 0 else 0.99 * seen + 0.01 * loss.item()
        if step % 200 == 0 or step == args.steps - 1:
            print(f"unet {step:5d}  loss {seen:.4f}  {time.time() - started:.0f} s", flush=True)
    average.copy_to(both.parameters())
    both.eval()


def save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Writes the pipeline in float16, so that transformers 4 and 5 both read it."""
    pipeline.to(torch.float16).save_pretrained(folder)
    # transformers 5 reads tokenizer.json, transformers 4 a vocabulary and merges.
    pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    # transformers 5 also reads the names of 4, which begin with `text_model.`; not the reverse.
    weights = folder / "text_encoder" / "model.safetensors"
    named = {
        f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})


def cosine(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over 100 steps, then half a cosine down to zero."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / 100, 0.5 * (1 + math.cos(math.pi * i / steps)))
    )


def take_step(loss: torch.Tensor, model: torch.nn.Module, optimiser, schedule) -> None:
    """One optimiser step with clipped gradients."""
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    schedule.step()


if __name__ == "__main__":
    main()
