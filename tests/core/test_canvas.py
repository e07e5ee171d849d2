"""Canvases: the same bytes as torchvision's transforms, and nothing resized unasked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Picture
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from harness.canvas import Canvas, WrongSize

SIZES = [(40, 60), (61, 33), (50, 50), (224, 301)]


def picture(width, height, mode="RGB"):
    rng = np.random.default_rng(width * height)
    return Picture.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_gives_the_bytes_of_resize_and_center_crop(size, filter_name):
    image = picture(*size)
    resized = functional.resize(image, 36, InterpolationMode(filter_name))
    expected = np.asarray(functional.center_crop(resized, [32, 32])).transpose(2, 0, 1)

    drawn = Canvas(3, 32, 32, "crop", 36, filter_name).draw(image)

    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_squash_resizes_both_sides(size):
    image = picture(*size)
    expected = functional.resize(image, [32, 32], InterpolationMode.BILINEAR)

    drawn = Canvas(3, 32, 32, "squash", 0, "bilinear").draw(image)

    assert np.array_equal(drawn, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_picture_becomes_three_channels(mode):
    drawn = Canvas(3, 8, 8, "crop").draw(picture(9, 12, mode))

    assert (drawn.shape, drawn.dtype) == ((3, 8, 8), np.uint8)


def test_exact_refuses_another_size():
    with pytest.raises(WrongSize, match="has 9x8 pixels, not 8x8"):
        Canvas(3, 8, 8).draw(picture(8, 9))


def test_a_scaled_canvas_keeps_the_share_that_is_cut_off():
    scaled = Canvas(3, 224, 224, "crop", 256).scaled(384, 384)

    # 256 / 224 * 384 = 438.9
    assert (scaled.image_shape, scaled.resize, scaled.fit) == ((3, 384, 384), 439, "crop")
