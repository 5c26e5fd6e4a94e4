"""Synthetic sets from what clients send: priors, augmentation, matching losses."""
