from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Experiment
from fedsim.process import settle_process
from tests.helpers import experiment, write_features

Toy = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def numerics() -> None:
    """What every process that computes results sets first."""
    settle_process(1)


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of features for all tests: it is prepared once."""
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture
def toy(features: Path) -> Toy:
    """Experiments with a method of `toys.py`."""

    def make(name: str, options: dict[str, Any] | None = None, **settings: Any) -> Experiment:
        use = f"{Path(__file__).with_name('toys.py')}:{name}"
        return experiment(features, name.lower(), use=use, options=options or {}, **settings)

    return make
