"""Hyper-parameter selection: the block `tune` of a study file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from fedsim.config.base import Section

Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
"""Values of one axis of a grid."""


class EarlyStopping(Section):
    """Trials that lag behind end early: asynchronous successive halving (Li et al., 2020).

    Trials compete with those of the same method, partition and seed. After `grace_rounds` rounds,
    and every `reduction_factor` times as many, a trial goes on if it is among the best one in
    `reduction_factor` that have come as far. Which trial comes first depends on the machine, so
    which trials end may differ a little. Trials of an extended range begin a competition of their
    own, and so do trials that are left after a kill. Needs `engine.backend: ray`.
    """

    grace_rounds: int = Field(1, gt=0)
    """Rounds that every trial gets."""
    reduction_factor: int = Field(3, gt=1)
    """One trial in so many goes on."""


class TuneConfig(Section):
    """Hyper-parameter selection: same seeds, partitions and number of trials for every method."""

    seeds: tuple[int, ...] = Field((1000,), strict=False, min_length=1)
    """Never the seeds of the final tables."""
    extensions: int = Field(4, ge=0)
    """How often an optimum on the edge of a numeric range may extend it."""
    confirm_seeds: tuple[int, ...] = Field((), strict=False)
    """More seeds for every method's best trials, from which the choice is then made: the best trial
    on one seed may diverge on the next."""
    confirm_best: int = Field(3, gt=0)
    """How many best trials of a method these are."""
    early_stopping: EarlyStopping | None = None
    """End trials early that lag behind others; null lets all of them finish."""
    grid: dict[str, dict[str, Values]] = {}
    """method -> dotted key -> values; every method gets the same number of combinations."""
