"""Images: what the digits are, data that are not what a card says, and label sets."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from harness.data import load_images
from harness.errors import DataError
from harness.plugins import load_plugins
from harness.sources import Place
from harness.suite import find_suite, read_suite

PLUGIN = """
import io
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from harness import DatasetCard, ImageRows, hookimpl

def load(context):
    if context.split == "gone":
        raise FileNotFoundError("parquet")
    return ImageRows(rows, "a plugin", count={count})

def rows():
    size, labels, column, names = {size}, {labels}, "{column}", {names}
    picture = io.BytesIO()
    Picture.new("RGB", (size, size), (250, 5, 5)).save(picture, "PNG")
    images = [{{"bytes": picture.getvalue()[: len(picture.getvalue()) - cut], "path": None}}
              for cut in {cuts}]
    kind = ClassLabel(names=names) if names else Value("int64")
    return Dataset.from_dict(
        {{column: images, "label": labels}}, features=Features({{column: Image(), "label": kind}})
    )

@hookimpl
def register_datasets(register):
    register("mine", load, card=DatasetCard(
        "Mine.", 3, (3, 4, 4), {{"test": {card_count}, "gone": 1}}, label_names=tuple({known})
    ))
"""
SUITE = """
name = "mine"
version = 1
[data]
name = "mine"
split = "{split}"
{more}
[threat]
norm = "linf"
epsilons = ["8/255"]
headline = "8/255"
[[attacks]]
name = "pgd"
"""


class Mine:
    """A data set written in the test, and a suite over it."""

    def __init__(self, folder, *, split="test", more="", **changes):
        plain = {
            "size": 4,
            "labels": [1],
            "column": "image",
            "names": None,
            "known": (),
            "cuts": [0],
            "count": None,
            "card_count": 1,
        }
        (folder / "mine.py").write_text(PLUGIN.format(**{**plain, **changes}))
        (folder / "mine.toml").write_text(SUITE.format(split=split, more=more))
        self.registry = load_plugins([str(folder / "mine.py")])
        self.suite = read_suite(folder / "mine.toml", self.registry)

    def load(self, **place):
        spec = self.suite.data
        return load_images(self.registry, spec, spec.split, Place(**place))


@pytest.fixture(scope="module")
def digits():
    registry = load_plugins()
    spec = find_suite("digits-linf", registry).data
    return {
        split: load_images(registry, spec, split, Place())
        for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_digits_are_the_copy_that_their_card_describes(digits, split):
    data = digits[split]

    assert len(data.labels) == data.card.splits[split]
    assert data.fingerprint == data.card.fingerprints[split]
    assert data.pixels.shape[1:] == (1, 8, 8)


def test_no_digit_is_in_two_splits(digits):
    images = torch.cat([data.pixels.flatten(1) for data in digits.values()])

    # scikit-learn's 1,797 digits are all different
    assert len(images) == 1797
    assert len(images.unique(dim=0)) == 1797


def test_every_class_is_in_the_test_split(digits):
    counts = digits["test"].labels.bincount(minlength=10)

    assert counts.min() >= 30


def test_samples_are_float_images_in_the_unit_interval(digits):
    data = digits["test"]

    samples = data.samples(torch.tensor([4, 2]))

    assert samples.images.dtype == torch.float32
    assert torch.equal((samples.images * 255).round().to(torch.uint8), data.pixels[[4, 2]])
    assert samples.labels.tolist() == data.labels[[4, 2]].tolist()


def test_a_sample_that_is_not_there_is_refused(digits):
    with pytest.raises(DataError, match="has 500 images here; there is no sample 500"):
        digits["test"].samples(torch.tensor([500]))


def test_colour_images_keep_their_channels(tmp_path):
    assert Mine(tmp_path).load().pixels[0, :, 0, 0].tolist() == [250, 5, 5]


def test_samples_come_in_the_order_of_the_suite(tmp_path):
    mine = Mine(tmp_path, labels=[0, 1, 2], cuts=[0, 0, 0], card_count=3, more="samples = [2, 0]")

    data = mine.load()

    assert (data.ids.tolist(), data.labels.tolist()) == ([2, 0], [2, 0])


def test_a_copy_with_fewer_images_is_used_as_it_is_and_says_so(tmp_path):
    mine = Mine(
        tmp_path, labels=[0, 1], cuts=[0, 0], count=2, card_count=9, more="samples = [7, 1]"
    )

    data = mine.load()

    assert data.is_partial
    assert data.ids.tolist() == [0, 1]


def test_too_few_images_are_refused_where_nobody_counted_them(tmp_path):
    mine = Mine(tmp_path, card_count=9, more="samples = [7, 0]")

    with pytest.raises(DataError, match="only 1 of the 2 samples of the suite are there"):
        mine.load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 5}, "1 of 1 images cannot be used: image 0 has 5x5 pixels, not 4x4"),
        ({"labels": [3]}, "image 0 has the label 3 where the card says 3 classes"),
        ({"column": "img"}, "a plugin has no column 'image'; there are img, label"),
        (
            {"names": ["b", "a", "c"], "known": ("a", "b", "c")},
            "label 0 is 'b' in a plugin, but 'a'",
        ),
        ({"names": ["a", "b"], "known": ("a", "b", "c")}, "a plugin has 2 classes, the card 3"),
        ({"labels": [], "cuts": []}, "a plugin holds no image"),
    ],
    ids=["size", "label", "column", "order", "classes", "empty"],
)
def test_data_unlike_their_card_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        Mine(tmp_path, **changes).load()


def test_broken_images_are_counted_and_named_by_their_ids(tmp_path):
    mine = Mine(tmp_path, labels=[0, 1, 2], cuts=[0, 60, 60], card_count=3)

    with pytest.raises(DataError, match="2 of 3 images cannot be used") as raised:
        mine.load()

    assert "image 1 cannot be decoded" in str(raised.value)
    assert "image 2 cannot be decoded" in str(raised.value)


def test_a_missing_file_is_an_expected_error(tmp_path):
    with pytest.raises(DataError, match="mine/gone: cannot be read: parquet"):
        Mine(tmp_path, split="gone").load()


def test_an_unknown_split_names_those_that_exist(tmp_path):
    mine = Mine(tmp_path)

    with pytest.raises(DataError, match="there are test, gone"):
        load_images(mine.registry, mine.suite.data, "tets", Place())


def labelled(tmp_path, sets):
    mine = Mine(tmp_path, labels=[0, 1, 2], cuts=[0, 0, 0], card_count=3, more='labels = "sets"')
    path = tmp_path / "sets.json"
    path.write_text(json.dumps(sets))
    return mine.load(labels=path)


def test_label_sets_name_all_correct_classes(tmp_path):
    data = labelled(tmp_path, [[0, 2], [2], []])

    samples = data.samples(torch.tensor([1, 0]))

    assert samples.accepted.tolist() == [[False, False, True], [True, False, True]]
    # image 1's own label is not in its set: the first class that is takes its place
    assert samples.labels.tolist() == [2, 0]


def test_an_image_without_a_correct_class_is_not_used(tmp_path):
    assert labelled(tmp_path, {"0": [1], "1": [], "2": [0]}).usable() == (0, 2)


def test_other_label_sets_are_other_data(tmp_path):
    one, other = labelled(tmp_path, [[0], [1], [2]]), labelled(tmp_path, [[0], [1], [0]])

    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([[3]], r"\[3\] is no list of classes from 0 to 2"),
        ("classes", "must be a JSON list"),
        ([[], []], "has no class for any of the images"),
    ],
    ids=["unknown class", "no list", "empty"],
)
def test_label_sets_that_are_none_are_refused(tmp_path, sets, message):
    with pytest.raises(DataError, match=message):
        labelled(tmp_path, sets)


def test_a_suite_of_label_sets_asks_for_their_file(tmp_path):
    mine = Mine(tmp_path, more='labels = "sets"')

    with pytest.raises(DataError, match="give it with --labels"):
        mine.load()


@pytest.mark.parametrize(
    ("accepted", "copies", "name"),
    [((), {}, ""), (("ab12",), {}, ""), (("cd",), {"ab12": "jpeg"}, "jpeg"), (("cd",), {}, "ab12")],
    ids=["any", "accepted", "named", "unknown"],
)
def test_a_copy_of_the_data_has_a_name(tmp_path, accepted, copies, name):
    spec = replace(Mine(tmp_path).suite.data, fingerprints=accepted, copies=copies)

    assert spec.copy_of("ab12") == name


def test_a_limit_asks_for_the_first_samples_and_cuts_no_training_images(tmp_path, monkeypatch):
    asked = {}
    registry = load_plugins()
    spec = find_suite("digits-linf", registry).data
    entry = registry.find("datasets", "digits")
    load = entry.load()

    def spy(context):
        asked[context.split] = context.ids
        return load(context)

    monkeypatch.setattr("harness_datasets.digits.load", spy)
    for split in ("test", "train"):
        load_images(registry, spec, split, Place(cache_dir=tmp_path, limit=3))

    assert asked == {"test": (0, 1, 2), "train": None}
