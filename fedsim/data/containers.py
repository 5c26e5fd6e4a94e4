"""A loaded data set: three splits and the names that go with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.data.images import ImagePaths
from fedsim.errors import DataError

DEFAULT_TEMPLATES = ("a photo of a {}",)


@dataclass(frozen=True, eq=False)
class Split:
    """One of train, val and test. Either `images` or `features` is there.

    Attributes:
        images: uint8 (N, height, width) or (N, height, width, 3), or files decoded on demand.
        features: float32 (N, dim), as found: not necessarily of unit length.
        labels: int64 (N,), 0 to num_classes - 1.
        clients: int64 (N,), clients recorded in the data.
        domains: int64 (N,), positions in `Dataset.domain_names`.
    """

    images: np.ndarray | ImagePaths | None
    features: np.ndarray | None
    labels: np.ndarray
    clients: np.ndarray | None = None
    domains: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rows(self) -> np.ndarray | ImagePaths:
        """The images or the features."""
        rows = self.features if self.images is None else self.images
        assert rows is not None
        return rows

    def take(self, which: np.ndarray) -> Split:
        """The samples at `which`, indices or a mask, with all that is known of them."""
        return Split(
            None if self.images is None else self.images[which],
            None if self.features is None else self.features[which],
            self.labels[which],
            None if self.clients is None else self.clients[which],
            None if self.domains is None else self.domains[which],
        )

    def load_images(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Images as an array, whether they are in memory or in files.

        Args:
            indices: int (n,), which; None = all.

        Returns:
            uint8 (n, height, width) or (n, height, width, 3).

        Raises:
            DataError: The split holds features, or a file cannot be decoded.
        """
        if self.images is None:
            raise DataError("this data set holds precomputed features, not images")
        if isinstance(self.images, ImagePaths):
            return self.images.load(indices)
        return self.images if indices is None else self.images[indices]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the rows and labels: the same rows in the same order give the same hash."""
        return fingerprint(self.rows, self.labels, self.clients, self.domains)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked data set.

    Attributes:
        name: What tables call it.
        classnames: In label order, as prompts use them.
        train: What the clients share.
        val: For selection; empty when `val_fraction` is 0.
        test: For the final numbers only.
        text_features: float32 (num_classes, dim), or None.
        fingerprint: Hash of all of the content, equal on every machine.
        templates: Prompts with one `{}` for the class name.
        domain_names: Empty when the data has no domains.
        notes: What was decided on the way (splits carved, classes left out).
    """

    name: str
    classnames: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    text_features: np.ndarray | None
    fingerprint: str
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    domain_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classnames)


def fingerprint(*arrays: np.ndarray | ImagePaths | None) -> str:
    """Hash of dtypes, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is None:
            digest.update(b"none")
            continue
        if isinstance(array, ImagePaths):
            digest.update(f"files {array.image_size}".encode())
            array = array.digests
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
