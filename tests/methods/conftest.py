import pytest

from fedsim.process import settle_process


@pytest.fixture(autouse=True)
def numerics() -> None:
    """What every process that computes results sets first."""
    settle_process(1)
