"""Data sets: label order against the hub's, one's own folders, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from pyarrow.parquet import read_schema

from harness.data import load_images
from harness.errors import HarnessError
from harness.plugins import load_plugins
from harness.sources import Place
from harness.suite import find_suite, read_suite

REGISTRY = load_plugins()
SUITE = """
name = "mine"
version = 1
[data]
name = "{name}"
split = "{split}"
canvas = {{ size = 8 }}
[threat]
norm = "linf"
epsilons = ["8/255"]
headline = "8/255"
[[attacks]]
name = "fgsm"
"""


def real_place(data_dir):
    return Place(data_dir, is_offline=True)


def names_of(path: Path):
    """The classes that a file itself names."""
    told = json.loads(read_schema(path).metadata[b"huggingface"])["info"]["features"]
    (names,) = [kind["names"] for kind in told.values() if kind["_type"] == "ClassLabel"]
    return names


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar10/plain_text/test-00000-of-00001.parquet"),
        ("cifar10", "cifar10/plain_text/train-00000-of-00001.parquet"),
        ("tiny-imagenet", "tiny-imagenet/data/valid-00000-of-00001.parquet"),
        ("tiny-imagenet", "tiny-imagenet/data/train-00000-of-00001.parquet"),
        ("imagenet", "imagenet-1k/data/validation-00000-of-00001.parquet"),
    ],
)
def test_the_labels_of_a_local_copy_are_in_the_order_of_the_hub(data_dir, name, file):
    documented = [
        label.partition(" ")[0] for label in REGISTRY.find("datasets", name).card.label_names
    ]

    assert names_of(data_dir / file) == documented


# CIFAR's classes are in the order of its own batches.meta, the others sorted by name or WordNet id
@pytest.mark.parametrize("name", ["cifar100", "tiny-imagenet", "imagenet"])
def test_documented_labels_are_sorted(name):
    labels = REGISTRY.find("datasets", name).card.label_names

    assert list(labels) == sorted(labels)


@pytest.mark.parametrize(
    ("suite", "board", "count"),
    [
        ("cifar10-linf", "cifar10-linf@jpeg75", 10_000),
        ("cifar10-l2", "cifar10-l2@jpeg75", 10_000),
        ("cifar10-corruptions", "cifar10-corruptions@jpeg75", 1_000),
        ("tinyimagenet-linf", "tinyimagenet-linf@shuffled", 10_000),
    ],
)
@pytest.mark.slow
def test_a_local_copy_is_known_by_its_fingerprint(data_dir, suite, board, count):
    chosen = find_suite(suite, REGISTRY)

    data = load_images(REGISTRY, chosen.data, chosen.data.split, real_place(data_dir))

    assert chosen.board(chosen.data.copy_of(data.fingerprint)) == board
    assert len(data.ids) == count
    # all classes are there, in a prefix too
    assert len(data.labels[:1000].unique()) == data.card.num_classes


def test_the_imagenet_sample_is_used_whole_and_marked(data_dir):
    chosen = find_suite("imagenet-linf", REGISTRY)

    data = load_images(REGISTRY, chosen.data, "validation", real_place(data_dir))

    assert data.is_partial
    assert data.pixels.shape == (500, 3, 224, 224)
    assert len(data.labels.unique()) == 500


def test_frozen_ids_are_different_and_in_range():
    suites = [find_suite(name, REGISTRY) for name in ("imagenet-linf", "tinyimagenet-linf")]

    counts = [(len(suite.data.samples), len(set(suite.data.samples))) for suite in suites]

    assert counts == [(5000, 5000), (10_000, 10_000)]


def picture(path: Path, colour: int, size: int = 12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.new("RGB", (size, size + 3), (colour, 0, 0)).save(path)


def own(tmp_path, name, split="test"):
    path = tmp_path / "mine.toml"
    path.write_text(SUITE.format(name=name, split=split))
    suite = read_suite(path, REGISTRY)
    return load_images(REGISTRY, suite.data, split, Place(cache_dir=tmp_path / "cache"))


def test_a_folder_for_each_class_is_a_data_set(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / "pets" / split / "dog" / "b.png", 20)
        picture(tmp_path / "pets" / split / "cat" / "a.png", 10)

    data = own(tmp_path, f"imagefolder/{tmp_path / 'pets'}")

    assert data.card.label_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1]
    assert data.pixels[:, 0, 0, 0].tolist() == [10, 20]


def test_a_folder_without_splits_is_one_split(tmp_path):
    picture(tmp_path / "pets" / "dog" / "b.png", 20)

    assert len(own(tmp_path, f"imagefolder/{tmp_path / 'pets'}").ids) == 1


def test_an_added_image_is_seen(tmp_path):
    picture(tmp_path / "pets" / "dog" / "b.png", 20)
    own(tmp_path, f"imagefolder/{tmp_path / 'pets'}")
    picture(tmp_path / "pets" / "dog" / "a.png", 30)

    assert own(tmp_path, f"imagefolder/{tmp_path / 'pets'}").pixels[:, 0, 0, 0].tolist() == [30, 20]


def test_a_broken_picture_in_a_folder_is_named(tmp_path):
    picture(tmp_path / "pets" / "dog" / "a.png", 20)
    (tmp_path / "pets" / "dog" / "b.png").write_bytes(b"no picture")

    with pytest.raises(HarnessError, match="1 of 2 images cannot be used: image 1 cannot be"):
        own(tmp_path, f"imagefolder/{tmp_path / 'pets'}")


def test_parquet_and_arrow_files_are_data_sets(tmp_path):
    features = Features({"photo": Image(), "kind": ClassLabel(names=["a", "b", "c"])})
    pictures = [Picture.new("RGB", (8, 8), (colour, 0, 0)) for colour in (1, 2, 3)]
    rows = Dataset.from_dict({"photo": pictures, "kind": [2, 1, 0]}, features=features)
    (tmp_path / "p").mkdir()
    rows.to_parquet(tmp_path / "p" / "test-00000-of-00001.parquet")
    rows.save_to_disk(tmp_path / "a")
    (arrow,) = (tmp_path / "a").glob("*.arrow")
    arrow.rename(arrow.with_name("test.arrow"))

    of_parquet = own(tmp_path, f"files/{tmp_path / 'p'}")
    of_arrow = own(tmp_path, f"files/{tmp_path / 'a'}")

    assert of_parquet.labels.tolist() == of_arrow.labels.tolist() == [2, 1, 0]
    assert torch.equal(of_parquet.pixels, of_arrow.pixels)


def test_what_save_to_disk_writes_is_a_data_set_with_its_splits(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    for split, labels in (("train", [0, 1, 1]), ("test", [1])):
        pictures = [Picture.new("RGB", (8, 8)) for _ in labels]
        rows = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
        rows.save_to_disk(tmp_path / "saved" / split)

    data = own(tmp_path, f"files/{tmp_path / 'saved'}")

    assert dict(data.card.splits) == {"test": 1, "train": 3}
    assert data.labels.tolist() == [1]


def test_nothing_in_the_folder_of_a_class_is_left_out_silently(tmp_path):
    picture(tmp_path / "pets" / "dog" / "a.png", 20)
    picture(tmp_path / "pets" / "dog" / "more" / "b.png", 30)

    with pytest.raises(HarnessError, match="more: is no picture"):
        own(tmp_path, f"imagefolder/{tmp_path / 'pets'}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagefolder/nowhere", "nowhere: no such folder"),
        ("imagefolder/{empty}", "holds no folder for each class"),
        ("files/{empty}", "holds no .parquet or .arrow file"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()

    with pytest.raises(HarnessError, match=message):
        own(tmp_path, name.format(empty=tmp_path / "empty"))


def test_splits_with_other_classes_are_refused(tmp_path):
    picture(tmp_path / "pets" / "train" / "dog" / "b.png", 20)
    picture(tmp_path / "pets" / "test" / "cat" / "a.png", 10)

    with pytest.raises(HarnessError, match="the classes of test differ: cat, dog"):
        own(tmp_path, f"imagefolder/{tmp_path / 'pets'}")


def test_an_unknown_split_is_refused_with_those_that_exist(tmp_path):
    picture(tmp_path / "pets" / "dog" / "a.png", 20)

    with pytest.raises(HarnessError, match="split 'train' is not known"):
        own(tmp_path, f"imagefolder/{tmp_path / 'pets'}", split="train")
