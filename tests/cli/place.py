"""What the tests of the commands share: two small studies, and what a command leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.helpers import feature_arrays, write_features

STUDY = """\
study: trial
data: {name: features.npz}
models: {clip: null, generator: null, logit_scale: 10.0}
partition: {scheme: dirichlet_label, dirichlet_alpha: 1.0, num_clients: 4}
train: {rounds: 2, batch_size: 4, lr: 0.05, momentum: 0.9}
engine: {backend: local}
methods: {fedavg_head: {}}
"""

DIGITS = """\
study: digits
engine: {backend: local}
cache: {images_per_class: 2}
methods: [fedavg_head]
"""


class Result(NamedTuple):
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Fedsim = Callable[..., Result]


def write_study(folder: Path) -> None:
    """The two studies, and the features that one of them is about."""
    write_features(folder)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "digits.yaml").write_text(DIGITS)


def damaged(name: str, **changes: object) -> None:
    """`name` with the arrays of `features.npz` changed; None leaves one out."""
    arrays = feature_arrays() | changes
    given: dict[str, Any] = {key: value for key, value in arrays.items() if value is not None}
    np.savez(name, **given)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }
