from __future__ import annotations

from typing import Any

import pytest

from fedsim.config.classifier import ClassifierConfig

WRITTEN = {"name": "convnet", "depth": None, "width": None, "norm": None, "projection": None}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({}, {}),
        ({"name": "vit", "depth": 2}, {"name": "vit", "depth": 2}),
        ({"depth": 3, "norm": "group"}, {"depth": 3, "norm": "group"}),  # the network's defaults
        ({"width": None, "projection": 8}, {"projection": 8}),
    ],
)
def test_dumps_are_those_of_older_versions(given: dict[str, Any], written: dict[str, Any]):
    """Names of runs are made of them."""
    assert ClassifierConfig(**given).model_dump(mode="json") == WRITTEN | written
    assert ClassifierConfig.model_validate(WRITTEN | written) == ClassifierConfig(**given)


def test_options_have_the_network_s_own_defaults():
    assert ClassifierConfig(width=8).options().model_dump() == {
        "depth": 3,
        "width": 8,
        "norm": "group",
    }
    assert ClassifierConfig(name="vit").options().model_dump() == {"depth": 6, "width": 192}
