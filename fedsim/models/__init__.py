"""Frozen models and what trains on top of them: CLIP, caches, classifiers, generators."""
