"""Images at the data's own size."""

import numpy as np
import torch

from fedsim.models.image_arrays import channels_first, fit_images, from_unit_range, to_unit_range


def test_bytes_survive_the_way_to_the_network_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    scaled = to_unit_range(every)
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert torch.equal(from_unit_range(scaled), every)


def test_channels_come_first():
    grey, colour = np.zeros((5, 4, 6), np.uint8), np.zeros((5, 4, 6, 3), np.uint8)
    assert channels_first(grey).shape == (5, 1, 4, 6)
    assert channels_first(colour).shape == (5, 3, 4, 6)


def test_generated_images_take_the_datas_shape():
    left = np.zeros((16, 16, 3), np.uint8)
    left[:, :8] = (255, 0, 0)
    (grey,) = fit_images([left], (1, 8, 8))
    assert grey.dtype == np.uint8
    assert grey.shape == (1, 8, 8)
    assert (grey[0, :, :3] == 76).all(), "the luma of red"
    assert (grey[0, :, 5:] == 0).all()
    colour = fit_images([left, left], (3, 16, 16))
    assert np.array_equal(colour[1], left.transpose(2, 0, 1)), "the right size stays as it is"


def test_the_central_part_is_kept():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    assert (fit_images([wide], (3, 8, 8)) == 200).all()
