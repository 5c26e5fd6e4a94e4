"""The workloads' data, drawn from a seed: for timing and parity, never as learning results."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from fedsim.seeding import numpy_rng

Arrays = dict[str, np.ndarray]


def images(count: int, seed: int = 0) -> Arrays:
    """The 1,797 digits of 8x8, three times as large, shifted and noisy: uint8 `(count, 28, 28)`."""
    rng, digits = numpy_rng(seed, "peers", "images"), load_digits()
    chosen = rng.integers(len(digits.target), size=count)
    large = np.kron((digits.images * 255 / 16).astype(np.uint8), np.ones((3, 3), np.uint8))
    x = np.zeros((count, 28, 28), np.uint8)
    shift = rng.integers(5, size=(count, 2))
    for down, right in np.ndindex(5, 5):
        here = np.flatnonzero((shift == (down, right)).all(1))
        x[here, down : down + 24, right : right + 24] = large[chosen[here]]
    noise = rng.integers(0, 48, size=x.shape, dtype=np.uint8)
    x = np.maximum(x, noise)
    y = digits.target[chosen].astype(np.int64)
    first = [int(np.flatnonzero(y == label)[0]) for label in range(10)]
    return {"x_train": x, "y_train": y, "x_test": x[first], "y_test": y[first]}


def features(
    clients: int, dim: int, classes: int, smallest: int, largest: int, seed: int = 0
) -> Arrays:
    """Unit features in a narrow cone, as CLIP's are; a Dirichlet(0.3) label mix per client."""
    rng = numpy_rng(seed, "peers", "features")
    centre = _unit(rng.standard_normal(dim))
    means = _unit(centre + 0.45 * _unit(rng.standard_normal((classes, dim))))
    sizes = rng.integers(smallest, largest + 1, clients)
    mixes = rng.dirichlet(np.full(classes, 0.3), clients)
    y = np.concatenate([rng.choice(classes, n, p=p) for n, p in zip(sizes, mixes, strict=True)])
    y_test = np.arange(classes)

    def draw(labels: np.ndarray) -> np.ndarray:
        return _unit(means[labels] + 1.25 * _unit(rng.standard_normal((len(labels), dim))))

    return {
        "features_train": draw(y),
        "y_train": y,
        "clients_train": np.repeat(np.arange(clients), sizes),
        "features_test": draw(y_test),
        "y_test": y_test,
        "text_features": _unit(means + 1.2 * _unit(rng.standard_normal((classes, dim)))),
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
