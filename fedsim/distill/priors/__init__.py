"""Priors: they draw latents, and decode latents to synthetic images.

    pixels      the images themselves
    vae         the decoder of the configured diffusion pipeline: latents, or the feature map that
                `distill.layer` of its stages have made of them (FedDGM's layer L)
    diffusion   the last denoising steps and the decoder: noisy latents and the text condition
    FILE.py:F   a GAN of the user's, with FedDGM's pair of latents (`fedsim.distill.priors.gan`)

Each prior that a study can name is one file: its `Options`, and `load`, which makes a `Prior`.
`fedsim.config.families.PRIORS` lists them. The files import torch only when they load or compute,
so that the command line can check options without it.
"""
