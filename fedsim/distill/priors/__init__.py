"""Priors: what synthetic images are made of, and how latents become images."""
