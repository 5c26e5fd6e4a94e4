"""Models: frozen CLIP and generators, caches on top of CLIP, and classifiers."""
