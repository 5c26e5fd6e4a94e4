"""Fixtures and marks shared by all tests."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """One cache for the whole session, away from the user's own; xdist workers inherit it."""
    if "FEDSIM_TEST_CACHE" not in os.environ:
        import tempfile

        cache = tempfile.TemporaryDirectory(prefix="fedsim-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["FEDSIM_TEST_CACHE"] = cache.name
    os.environ["FEDSIM_CACHE"] = os.environ["FEDSIM_TEST_CACHE"]
    # Ray starts its workers with these: no usage reports, no new behaviour announced in warnings.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


# A slow machine is no failure: nothing here is judged by a clock.
settings.register_profile("fedsim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedsim")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that use Ray or the shared data, and skips what this machine cannot run."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="no shared/data beside the repository"))
        if item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_cuda() -> bool:
    """Whether torch sees a GPU; asked only when a GPU test is collected."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights that developers share, beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("no shared/data beside the repository")
    return SHARED


@pytest.fixture(autouse=True)
def threads() -> None:
    """One torch thread, as in every fedsim process that computes results on CPU."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of four logical CPUs, started once per test process."""
    import ray

    # Without a name Ray would join a cluster that something else has started on this machine.
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
