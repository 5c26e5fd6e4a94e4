"""Remakes both shipped models from nothing: glyphs, tiny-clip, tiny-diffusion, figures.

    python experiments/pretrain_tiny/make_models.py

The handwritten digits are opened in `figures` only, when all training is over.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from glyphs import DIGITS, HELD_OUT_FONTS, TRAIN_FONTS, make_set

HERE = Path(__file__).parent
PER_CLASS = 64
TEMPLATE = "a photo of a {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-figures", action="store_true", help="measure what is shipped")
    args = parser.parse_args()
    if not args.only_figures:
        with tempfile.TemporaryDirectory() as folder:
            bank = Path(folder) / "glyphs.npz"
            make_bank(bank, args.threads)
            for script in ("train_clip.py", "train_diffusion.py"):
                command = [sys.executable, str(HERE / script), str(bank)]
                subprocess.run([*command, "--threads", str(args.threads)], check=True)
    torch.set_num_threads(1)
    figures()


def make_bank(path: Path, workers: int) -> None:
    """60,000 pictures in training fonts and 5,000 in fonts that are held out."""
    started = time.time()
    train_x, train_y = make_set(60_000, TRAIN_FONTS, seed=1, workers=workers)
    held_x, held_y = make_set(5_000, HELD_OUT_FONTS, seed=2, workers=workers)
    np.savez(path, train_x=train_x, train_y=train_y, held_x=held_x, held_y=held_y)
    print(f"glyphs: {time.time() - started:.0f} s", flush=True)


def figures() -> None:
    """What the shipped models do with real handwriting, and how long it takes on one thread."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    from fedsim.models.clip import load_clip
    from fedsim.models.generator import load_generator

    clip = timed("load tiny-clip", lambda: load_clip("tiny-clip"))
    data = load_digits()
    pixels = clip.prepare(np.round(data.images * (255 / 16)).astype(np.uint8))
    features = timed("encode 1,797 digits", lambda: clip.encode_images(pixels)).numpy()
    texts = clip.class_embeddings(DIGITS, [TEMPLATE]).numpy()
    print(f"zero-shot on digits: {np.mean((features @ texts.T).argmax(1) == data.target):.3f}")

    generator = timed("load tiny-diffusion", lambda: load_generator("tiny-diffusion"))
    labels = np.repeat(np.arange(10), PER_CLASS)
    prompts = [TEMPLATE.format(DIGITS[label]) for label in labels]
    pictures = timed("generate 640", lambda: generator.generate(prompts, range(len(prompts))))
    synthetic = clip.encode_images(clip.prepare(pictures)).numpy()
    agree = np.mean((synthetic @ texts.T).argmax(1) == labels)
    print(f"tiny-clip agrees with the prompt of {agree:.3f} of the pictures")
    same = [
        np.corrcoef(p.reshape(PER_CLASS, -1)) for p in pictures[..., 0].reshape(10, PER_CLASS, -1)
    ]
    off_diagonal = ~np.eye(PER_CLASS, dtype=bool)
    print(f"correlation within a class: {np.mean([c[off_diagonal].mean() for c in same]):.3f}")
    head = LogisticRegression(C=10, max_iter=2000).fit(synthetic, labels)
    print(f"linear head trained on them, on digits: {head.score(features, data.target):.3f}")


def timed(what: str, call):
    """Runs `call`, prints how long it took, returns its result."""
    started = time.time()
    result = call()
    print(f"{what}: {time.time() - started:.2f} s", flush=True)
    return result


if __name__ == "__main__":
    main()
