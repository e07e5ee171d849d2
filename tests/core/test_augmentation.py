"""Changes of training images: keyed by sample, whole images, nothing outside the range."""

from __future__ import annotations

import pytest
import torch

from harness.augmentation import cropped, cut_out, flipped, in_turn, translated, unchanged
from harness.tensors import Noise


def test_translation_moves_whole_images_by_at_most_the_given_pixels():
    images = torch.zeros(64, 1, 7, 7)
    images[:, :, 3, 3] = 1
    noise = Noise(0, torch.arange(64), (1, 7, 7))

    moved = translated(2)(images, noise)

    places = moved[:, 0].flatten(1).argmax(dim=1)
    rows, columns = places // 7, places % 7
    assert moved.sum() == 64
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5}


def test_no_augmentation_gives_the_images_as_they_are():
    images = torch.rand(2, 1, 3, 3)

    assert unchanged(images, Noise(0, torch.arange(2), (1, 3, 3))) is images


ALL = [translated(2), cropped(2), flipped, cut_out(4), in_turn([cropped(2), flipped, cut_out(3)])]
IDS = ["translated", "cropped", "flipped", "cut out", "in turn"]


def pictures(count):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def noise(ids, key=0):
    return Noise(key, torch.as_tensor(ids), (3, 8, 8))


@pytest.mark.parametrize("augment", ALL, ids=IDS)
def test_an_image_is_changed_alike_alone_and_in_a_batch(augment):
    images = pictures(16)

    together = augment(images, noise(range(16)))
    alone = augment(images[5:6], noise([5]))

    assert torch.equal(alone[0], together[5])


@pytest.mark.parametrize("augment", ALL, ids=IDS)
def test_another_seed_changes_images_otherwise(augment):
    images = pictures(16)

    assert not torch.equal(augment(images, noise(range(16))), augment(images, noise(range(16), 1)))


@pytest.mark.parametrize("augment", ALL, ids=IDS)
def test_images_stay_images(augment):
    changed = augment(pictures(16), noise(range(16)))

    assert changed.shape == (16, 3, 8, 8)
    assert 0 <= changed.min() <= changed.max() <= 1


def test_about_half_of_the_images_are_mirrored_and_the_others_are_left():
    images = pictures(400)

    changed = flipped(images, noise(range(400)))

    mirrored = (changed == images.flip(3)).flatten(1).all(dim=1)
    left = (changed == images).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~left)
    # binomial: 400 draws of 1/2 lie within 5 standard deviations, 50, of 200
    assert 150 < int(mirrored.sum()) < 250


def test_a_cut_takes_a_square_and_nothing_else():
    changed = cut_out(3)(torch.ones(200, 1, 8, 8), Noise(0, torch.arange(200), (1, 8, 8)))

    counts = (changed != 1).flatten(1).sum(dim=1)
    assert counts.max() == 9  # the whole square, where it lies inside
    assert set(counts.tolist()) <= {4, 6, 9}  # two of three rows or columns at an edge
    assert set(changed.unique().tolist()) == {0.5, 1.0}


def test_a_crop_mirrors_what_lies_outside():
    images = torch.arange(8.0).expand(64, 1, 8, 8) / 8

    changed = cropped(2)(images, Noise(0, torch.arange(64), (1, 8, 8)))

    # a row that starts two pixels to the left: 2, 1, 0, 1, 2, 3, 4, 5
    rows = {tuple((row * 8).int().tolist()) for row in changed[:, 0, 0]}
    assert (2, 1, 0, 1, 2, 3, 4, 5) in rows
    assert len(rows) == 5
