"""Captioned glyphs: the only training data of tiny-clip and tiny-diffusion.

Characters of the fonts that ship inside matplotlib are warped and rasterised the way the UCI
digits once were (`sklearn.datasets.load_digits`): crop to the ink, scale to 29-32 px high,
binarise, average 4x4 blocks -> an 8x8 grey picture with 17 levels. The UCI digits themselves
are never opened here, so what the models later make of real handwriting is a transfer, with an
honest domain gap.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SYMBOLS = {"+": "plus", "=": "equals sign", "?": "question mark", "&": "ampersand", "#": "hash"}
# Cropped to its ink, an O is a zero, and an l or I is a one: no caption could be right.
LETTERS = [c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in "OolI"]
CHARACTERS = {str(i): name for i, name in enumerate(DIGITS)}
CHARACTERS |= {c: f"letter {c.lower()}" for c in LETTERS} | SYMBOLS
NAMES = tuple(dict.fromkeys(CHARACTERS.values()))  # digits first: index 0..9 is the digit

ANY_TEMPLATES = ("{}", "a photo of a {}", "a photo of the {}", "a drawing of a {}", "a blurry {}")
DIGIT_TEMPLATES = ("the number {}", "a handwritten digit {}", "the digit {}", "a handwritten {}")

TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono"),
    *("DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10"),
)
HELD_OUT_FONTS = ("DejaVuSansMono-Oblique", "DejaVuSerif-Italic", "STIXGeneralItalic", "cmtt10")
LETTERS_ONLY = ("cmmi10", "cmti10")  # their symbols sit at other code points

CANVAS = 96  # px
CHUNK = 500  # glyphs per random stream: the set is the same for any number of workers


@lru_cache(maxsize=4096)
def _ink(char: str, font: str, weight: int) -> np.ndarray:
    """The character in the middle of the canvas, ink in 0..1, strokes thickened by `weight` px."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    picture = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(picture)
    face = ImageFont.truetype(str(path), 58)
    left, top, right, bottom = pen.textbbox((0, 0), char, font=face)
    corner = ((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2)
    pen.text(corner, char, font=face, fill=255, stroke_width=weight)
    return np.asarray(picture, np.float32) / 255


def _warp(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random affine map and a smooth displacement (sigma 4 to 8 px), bilinear."""
    turn, shear = rng.normal(0, 0.12), rng.normal(0, 0.18)
    stretch = np.exp(rng.normal(0, 0.12, 2))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotation @ np.array([[1, 0], [shear, 1]]) @ np.diag(stretch)
    middle = (CANVAS - 1) / 2
    grid = np.indices((CANVAS, CANVAS)).reshape(2, -1) - middle
    points = (matrix @ grid + middle).reshape(2, CANVAS, CANVAS)
    # The field is smooth, so it is drawn on a grid four times coarser and enlarged.
    noise = rng.normal(size=(2, CANVAS // 4, CANVAS // 4))
    sigma, size = rng.uniform(4, 8), rng.uniform(1.0, 3.5)  # px; size is the root mean square
    smooth = ndimage.gaussian_filter(noise, (0, sigma / 4, sigma / 4), mode="wrap")
    smooth *= size / smooth.std()
    points += ndimage.zoom(smooth, (1, 4, 4), order=1)
    return ndimage.map_coordinates(ink, points, order=1)


def _rasterise(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop, scale, binarise and average, as the UCI digits were: (8, 8) uint8."""
    rows, columns = np.where(ink > 0.5)
    if len(rows) < 8:  # warped off the canvas
        return np.zeros((8, 8), np.uint8)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    high = int(rng.integers(29, 33))
    wide = min(32, max(2, round(high * (box[2] - box[0]) / (box[3] - box[1]))))
    crop = Image.fromarray((ink * 255).astype(np.uint8)).crop(box)
    small = np.asarray(crop.resize((wide, high), Image.Resampling.BILINEAR)) > 127
    page = np.zeros((32, 32), bool)
    top = int(rng.integers(0, 33 - high))
    left = int(np.clip((32 - wide) // 2 + rng.integers(-2, 3), 0, 32 - wide))
    page[top : top + high, left : left + wide] = small
    levels = page.reshape(8, 4, 8, 4).sum((1, 3))  # 0..16
    return np.round(levels * (255 / 16)).astype(np.uint8)


def render(char: str, font: str, rng: np.random.Generator) -> np.ndarray:
    """One picture of one character, (8, 8) uint8, ink bright on black."""
    return _rasterise(_warp(_ink(char, font, int(rng.integers(0, 4))), rng), rng)


def _chunk(task: tuple[int, tuple[str, ...], int, int, float]) -> tuple[np.ndarray, np.ndarray]:
    count, fonts, seed, index, digit_share = task
    rng = np.random.default_rng([seed, index])
    digits, others = list(CHARACTERS)[:10], list(CHARACTERS)[10:]
    images, labels = [], []
    for _ in range(count):
        font = fonts[rng.integers(len(fonts))]
        char = digits[rng.integers(10)]
        if rng.random() >= digit_share:
            char = others[rng.integers(len(others))]
            if font in LETTERS_ONLY and char in SYMBOLS:
                font = fonts[0]
        images.append(render(char, font, rng))
        labels.append(NAMES.index(CHARACTERS[char]))
    return np.stack(images), np.array(labels)


def make_set(
    count: int, fonts: tuple[str, ...], *, seed: int, digit_share: float = 0.5, workers: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Random glyphs: pictures (count, 8, 8) uint8 and labels (count,), indices into `NAMES`."""
    tasks = [
        (min(CHUNK, count - start), fonts, seed, index, digit_share)
        for index, start in enumerate(range(0, count, CHUNK))
    ]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_chunk, tasks))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def caption(label: int, rng: np.random.Generator) -> str:
    """A random caption of `NAMES[label]`."""
    templates = ANY_TEMPLATES + (DIGIT_TEMPLATES if label < 10 else ())
    return templates[rng.integers(len(templates))].format(NAMES[label])
