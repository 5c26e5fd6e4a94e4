"""Readers of data, one per format: files to a `Source`."""
