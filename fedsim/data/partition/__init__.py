"""Partitions: which client holds which training sample."""
