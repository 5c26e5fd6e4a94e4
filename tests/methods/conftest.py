import pytest

from fedsim.engine.task import settle_numerics


@pytest.fixture(autouse=True)
def numerics() -> None:
    """What every process that computes results sets first."""
    settle_numerics(1)
