"""What every benchmark starts from: one thread, freed memory kept, as in a client actor."""

import pytest

from fedsim.process import settle_process


@pytest.fixture(autouse=True, scope="session")
def settled() -> None:
    settle_process(threads=1)
