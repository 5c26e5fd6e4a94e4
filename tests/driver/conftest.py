"""Tuning and reports are tested through their commands, with the fixtures of these."""

from tests.cli.conftest import fedsim, no_report, place

__all__ = ["fedsim", "no_report", "place"]
