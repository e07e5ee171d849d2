"""Images: what the digits are, and data that are not what a card says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.data import fingerprint, load_images
from harness.errors import DataError
from harness.plugins import load_plugins

PLUGIN = """
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from harness import DatasetCard, hookimpl

def load(split, *, data_dir):
    size, label, column = {size}, {label}, "{column}"
    if split == "gone":
        raise FileNotFoundError("parquet")
    return Dataset.from_dict(
        {{column: [Picture.new("RGB", (size, size), (250, 5, 5))], "label": [label]}},
        features=Features({{column: Image(), "label": Value("int64")}}),
    )

@hookimpl
def register_datasets(register):
    register("mine", load, card=DatasetCard("Mine.", 3, (3, 4, 4), {{"test": 1, "gone": 1}}))
"""


def mine(tmp_path, size=4, label=1, column="image"):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(size=size, label=label, column=column))
    return load_plugins([str(path)])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_digits_are_the_copy_that_their_card_describes(registry, split):
    data = load_images(registry, "digits", split)

    assert len(data.labels) == data.card.splits[split]
    assert data.fingerprint == data.card.fingerprints[split]
    assert data.pixels.shape[1:] == (1, 8, 8)


def test_no_digit_is_in_two_splits(registry):
    splits = [load_images(registry, "digits", name) for name in ("train", "validation", "test")]

    images = torch.cat([data.pixels.flatten(1) for data in splits])

    # scikit-learn's 1,797 digits are all different
    assert len(images) == 1797
    assert len(images.unique(dim=0)) == 1797


def test_every_class_is_in_the_test_split(registry):
    counts = load_images(registry, "digits", "test").labels.bincount(minlength=10)

    assert counts.min() >= 30


def test_samples_are_float_images_in_the_unit_interval(registry):
    data = load_images(registry, "digits", "test")

    samples = data.samples(torch.tensor([4, 2]))

    assert samples.images.dtype == torch.float32
    assert torch.equal((samples.images * 255).round().to(torch.uint8), data.pixels[[4, 2]])
    assert samples.labels.tolist() == data.labels[[4, 2]].tolist()


def test_a_sample_that_is_not_there_is_refused(registry):
    data = load_images(registry, "digits", "test")

    with pytest.raises(DataError, match="has 500 images; there is no sample 500"):
        data.samples(torch.tensor([500]))


def test_colour_images_keep_their_channels(tmp_path):
    data = load_images(mine(tmp_path), "mine", "test")

    assert data.pixels[0, :, 0, 0].tolist() == [250, 5, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 5}, "image 0 has 5x5 pixels, not 4x4"),
        ({"label": 3}, "labels from 3 to 3 where the card says 3 classes"),
        ({"column": "img"}, "no column 'image'; there are img, label"),
    ],
    ids=["size", "label", "column"],
)
def test_data_unlike_their_card_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load_images(mine(tmp_path, **changes), "mine", "test")


def test_a_missing_file_is_an_expected_error(tmp_path):
    with pytest.raises(DataError, match="mine/gone: cannot be read: parquet"):
        load_images(mine(tmp_path), "mine", "gone")


def test_an_unknown_split_names_those_that_exist(registry):
    with pytest.raises(DataError, match="there are train, validation, test"):
        load_images(registry, "digits", "tets")


def test_the_fingerprint_sees_one_pixel_and_one_label():
    pixels, labels = np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1])
    other_pixels, other_labels = pixels.copy(), np.array([1, 1])
    other_pixels[1, 0, 1, 1] = 1

    prints = {
        fingerprint(pixels, labels),
        fingerprint(other_pixels, labels),
        fingerprint(pixels, other_labels),
    }

    assert len(prints) == 3
