"""Networks for images of 8 to 224 pixels with 1 or 3 channels, without their last layer.

Each network is one file: its `Options`, and `build`, which makes a module `(B, c, h, w)` ->
`(B, d)` on torch's current device. `fedsim.config.families.NETWORKS` lists them. The files import
torch only when they build, so that the command line can check options without it.

Where an image has shrunk to one pixel, nothing is left to pool, and pooling is left out.

**Norm layers.** Group norm (Wu and He, 2018): up to 32 groups of at least 4 channels.
There is no batch norm: statistics of one client's batches are part of what non-IID data changes,
their averages belong to no model, and padding would change the valid samples of a batch.
"""

from __future__ import annotations

from typing import Literal

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

NormName = Literal["group", "instance", "none"]
