"""Spoilt clients: their choice, their wrong labels, and their corrupted images or features.

A draw depends on the split's seed, the client and the sample, never on the method or on how clients
are grouped. Severity s in (0, 1] goes from barely visible to hardly recognisable:

    gaussian    + N(0, (s / 2)^2) on pixels in [0, 1]; on unit features a random direction of
                expected length 2 s is added, and the length brought back to 1
    blur        Gaussian, of standard deviation s / 16 of the image's side
    contrast    the difference to the image's mean is multiplied by 1 - 0.95 s
    occlusion   a grey square over 80 % * s of the image, anywhere

Images are corrupted at the encoder's input size, as in ImageNet-C (Hendrycks and Dietterich, 2019),
so that a severity means the same for files of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedsim.config.sections import NoiseConfig
from fedsim.errors import ConfigError
from fedsim.seeding import numpy_rng

_GREY = 128


def spoilt_clients(noise: NoiseConfig, num_clients: int, seed: int) -> tuple[int, ...]:
    """The clients whose training data is spoilt, sorted; none without active noise.

    A larger share spoils the same clients and others.

    Raises:
        ConfigError: The share asked for is less than half a client.

    >>> spoilt_clients(NoiseConfig(clients=0.3, labels=0.5), 10, seed=0)
    (1, 2, 5)
    """
    if not noise.active:
        return ()
    count = _rounded(noise.clients * num_clients)
    if count == 0:
        raise ConfigError(
            f"noise.clients is {noise.clients:g}: of {num_clients} clients that is none; choose "
            f"{1 / num_clients:.2g} or more, or 0"
        )
    order = numpy_rng(seed, "noise", "clients").permutation(num_clients)
    return tuple(sorted(order[:count].tolist()))


def num_wrong(share: float, num_samples: int) -> int:
    """How many of a client's labels are replaced.

    >>> num_wrong(0.25, 10), num_wrong(1.0, 7)
    (3, 7)
    """
    return _rounded(share * num_samples)


def observed_labels(
    labels: np.ndarray,
    rows_of: Mapping[int, np.ndarray],
    share: float,
    num_classes: int,
    seed: int,
) -> np.ndarray:
    """Labels as the clients see them.

    Args:
        labels: int64 (N,), the true ones.
        rows_of: Training rows of every spoilt client.
        share: Of each of these clients' labels, replaced by another class drawn uniformly.
        num_classes: 2 or more.
        seed: Of the split.

    Returns:
        int64 (N,), a copy.
    """
    observed = np.array(labels, dtype=np.int64)
    for client, rows in rows_of.items():
        rng = numpy_rng(seed, "noise", "labels", client)
        wrong = rng.permutation(rows)[: num_wrong(share, len(rows))]
        step = rng.integers(1, num_classes, size=len(wrong))
        observed[wrong] = (observed[wrong] + step) % num_classes
    return observed


def spoil_images(images: np.ndarray, rows: np.ndarray, noise: NoiseConfig, seed: int) -> np.ndarray:
    """Corrupt images, each with a stream of its own.

    Args:
        images: uint8 (n, 1 or 3, height, width).
        rows: int (n,), which training samples they are.
        noise: `images` and `severity`.
        seed: Of the split.

    Returns:
        uint8 (n, 1 or 3, height, width).
    """
    corrupt = {
        "gaussian": _gaussian,
        "blur": _blur,
        "contrast": _contrast,
        "occlusion": _occlusion,
    }[noise.images]
    spoilt = np.empty_like(images)
    for at, row in enumerate(rows):
        rng = numpy_rng(seed, "noise", "images", int(row))
        spoilt[at] = corrupt(images[at], noise.severity, rng)
    return spoilt


def spoil_features(
    features: np.ndarray, rows: np.ndarray, noise: NoiseConfig, seed: int
) -> np.ndarray:
    """Add Gaussian noise to unit features and bring them back to length 1.

    Args:
        features: float32 (n, d), rows of length 1.
        rows: int (n,), which training samples they are.
        noise: `images` must be `gaussian`; `severity`.
        seed: Of the split.

    Returns:
        float32 (n, d).

    Raises:
        ConfigError: Another corruption is asked for, which only images can undergo.
    """
    if noise.images != "gaussian":
        raise ConfigError(
            f"noise.images is {noise.images!r}, but the data holds precomputed features, not "
            f"images: use gaussian, or none with noise.labels"
        )
    width = features.shape[1]
    drawn = [numpy_rng(seed, "noise", "images", int(row)).standard_normal(width) for row in rows]
    noisy = features + 2 * noise.severity / math.sqrt(width) * np.array(drawn)
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


def _gaussian(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(image + rng.normal(0, 255 * severity / 2, image.shape))


def _blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageFilter

    blur = ImageFilter.GaussianBlur(severity * image.shape[-1] / 16)
    return np.stack([np.asarray(Image.fromarray(channel).filter(blur)) for channel in image])


def _contrast(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    mean = image.mean()
    return _to_bytes(mean + (1 - 0.95 * severity) * (image - mean))


def _occlusion(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[1:]
    edge = max(1, _rounded(min(height, width) * math.sqrt(0.8 * severity)))
    top, left = rng.integers(0, [height - edge + 1, width - edge + 1])
    covered = image.copy()
    covered[:, top : top + edge, left : left + edge] = _GREY
    return covered


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def _rounded(number: float) -> int:
    """The nearest integer; halves go up, whatever the parity."""
    return math.floor(number + 0.5)
