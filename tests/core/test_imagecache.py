"""Decoded images on disk: built once, noticed when damaged, safe with two builders and a kill."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from harness import imagecache
from harness.api import DatasetCard, ImageRows
from harness.canvas import Canvas
from harness.decoding import Choice
from harness.errors import DataError
from harness.imagecache import fingerprint, folder_of, read, stored

CARD = DatasetCard("Squares.", 10, (3, 6, 6), {"test": 40})


def pixels_of(number):
    return np.full((6, 6, 3), number, np.uint8)


def rows(count=40, pause=0.0):
    time.sleep(pause)
    return Dataset.from_dict(
        {
            "image": [Picture.fromarray(pixels_of(number)) for number in range(count)],
            "label": [number % 10 for number in range(count)],
        },
        features=Features({"image": Image(), "label": ClassLabel(num_classes=10)}),
    )


def source(identity="one", opened=rows, count=40):
    return ImageRows(opened, "squares", identity, count)


def choice(ids=(), canvas=None):
    return Choice("squares/test", CARD, canvas or Canvas(3, 6, 6), len(ids) or 40, tuple(ids))


def never():
    raise AssertionError("decoded again")


def test_the_second_use_decodes_nothing(tmp_path):
    first = stored(source(), choice(), tmp_path)

    second = stored(source(opened=never), choice(), tmp_path)

    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.pixels, first.pixels)
    assert isinstance(second.pixels, np.memmap)
    assert second.pixels[7, :, 0, 0].tolist() == [7, 7, 7]


def test_samples_lie_in_the_order_that_was_asked_for(tmp_path):
    found = stored(source(), choice([9, 3, 30]), tmp_path)

    assert found.ids.tolist() == [9, 3, 30]
    assert found.labels.tolist() == [9, 3, 0]
    assert found.pixels[:, 0, 0, 0].tolist() == [9, 3, 30]


@pytest.mark.parametrize(
    "other",
    [
        lambda: (source("two"), choice()),
        lambda: (source(), choice([1, 2])),
        lambda: (source(), choice(canvas=Canvas(3, 4, 4, "crop"))),
    ],
    ids=["source", "samples", "canvas"],
)
def test_another_source_choice_or_canvas_is_kept_apart(tmp_path, other):
    assert folder_of(source(), choice(), tmp_path) != folder_of(*other(), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "altered", "no labels", "other ids", "torn card"])
def test_a_damaged_cache_is_noticed_and_built_again(tmp_path, damage):
    folder = folder_of(source(), choice(), tmp_path)
    first = stored(source(), choice(), tmp_path).fingerprint
    path = folder / "pixels.bin"
    content = path.read_bytes()
    {
        "truncated": lambda: path.write_bytes(content[:-1]),
        "altered": lambda: path.write_bytes(content[:-1] + b"\0"),
        "no labels": (folder / "labels.npy").unlink,
        "other ids": lambda: np.save(folder / "ids.npy", np.arange(40)[::-1].copy()),
        "torn card": lambda: (folder / "card.json").write_text('{"shape": [4'),
    }[damage]()

    noticed = read(folder)
    again = stored(source(), choice(), tmp_path)

    assert noticed is None
    assert again.fingerprint == first
    assert path.read_bytes() == content


def test_a_large_cache_is_hashed_again_only_when_it_was_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(imagecache, "ALWAYS_HASHED", 0)
    folder = folder_of(source(), choice(), tmp_path)
    stored(source(), choice(), tmp_path)
    path = folder / "pixels.bin"
    untouched = read(folder)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")

    touched = read(folder)

    assert untouched is not None
    assert touched is None


def test_a_source_without_identity_is_never_kept(tmp_path):
    found = stored(source(""), choice(), tmp_path)

    assert len(found.ids) == 40
    assert list(tmp_path.iterdir()) == []


def test_two_builders_at_once_leave_one_cache(tmp_path):
    slow = source(opened=partial(rows, pause=0.3))
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=stored, args=(slow, choice(), tmp_path)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)

    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(list(tmp_path.glob("*/card.json"))) == 1
    assert list(tmp_path.glob("*.part")) == []


def test_a_killed_builder_leaves_nothing_that_the_next_one_believes(tmp_path):
    slow = source(opened=partial(rows, pause=30))
    builder = multiprocessing.get_context("spawn").Process(
        target=stored, args=(slow, choice(), tmp_path)
    )
    builder.start()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(10)
    left = list(tmp_path.glob("*.part"))

    found = stored(source(), choice(), tmp_path)

    assert len(left) == 1
    assert len(found.ids) == 40
    assert list(tmp_path.glob("*.part")) == []


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)

    with pytest.raises(DataError, match="make room, or name another folder with --cache"):
        stored(source(), choice(), tmp_path)


def test_a_folder_that_cannot_be_written_is_an_expected_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="name another folder with --cache or HARNESS_CACHE"):
        stored(source(), choice(), tmp_path / "file")


def test_a_failed_build_leaves_no_folder(tmp_path):
    with pytest.raises(DataError, match="samples of the suite are there"):
        stored(source(), choice([1, 99]), tmp_path)

    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_the_card_tells_where_the_images_came_from(tmp_path):
    stored(source(), choice(), tmp_path)

    told = json.loads((folder_of(source(), choice(), tmp_path) / "card.json").read_text())

    assert (told["where"], told["shape"]) == ("squares", [40, 3, 6, 6])


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


def test_fewer_images_than_the_card_says_are_a_partial_copy(tmp_path):
    uncounted = ImageRows(partial(rows, 30), "squares", "few")

    assert stored(uncounted, choice(), tmp_path).is_partial


def test_more_images_than_the_card_says_are_refused(tmp_path):
    uncounted = ImageRows(partial(rows, 50), "squares", "many")

    with pytest.raises(DataError, match="holds 50 images where the card says 40"):
        stored(uncounted, choice(), tmp_path)


def named(*names):
    """Squares in files of some names."""
    pictures = []
    for number in range(len(names)):
        content = io.BytesIO()
        Picture.fromarray(pixels_of(number)).save(content, "PNG")
        pictures.append({"bytes": content.getvalue(), "path": names[number]})
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    data = {"image": pictures, "label": [0] * len(names)}
    return ImageRows(partial(Dataset.from_dict, data, features=features), "named", "")


NUMBERED = replace(CARD, id_pattern=r"val_(\d+)")


def chosen(*ids):
    return Choice("squares/test", NUMBERED, Canvas(3, 6, 6), len(ids), ids)


def test_the_number_in_a_files_name_is_its_id(tmp_path):
    found = stored(named("val_3.png", "val_1.png", "val_2.png"), chosen(1, 2), tmp_path)

    assert found.ids.tolist() == [1, 2]
    assert found.pixels[:, 0, 0, 0].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("val_1.png", "cat.png"),
            "image at place 1 is called 'cat.png', which says no number",
        ),
        (("val_1.png", "val_1.png"), "two images have the id 0"),
    ],
    ids=["no number", "twice"],
)
def test_files_that_cannot_be_told_apart_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        stored(named(*names), chosen(0, 1), tmp_path)


def test_a_source_that_breaks_while_it_is_read_is_named(tmp_path):
    def broken():
        raise OSError("deserialize thrift")

    with pytest.raises(DataError, match="squares cannot be read: deserialize thrift; restore it"):
        stored(source(opened=broken), choice(), tmp_path)
