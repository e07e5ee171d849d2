"""What somebody hands in, before any model is asked."""

from __future__ import annotations

import numpy as np
import pytest

from harness import replay
from harness.errors import UsageError
from harness.replay import read_handed, refuse_other_suite

IDS = np.arange(3)
IMAGES = np.full((3, 1, 8, 8), 0.5)


def test_ids_and_images_are_read_as_float32(tmp_path):
    np.savez(tmp_path / "mine.npz", ids=IDS, images=IMAGES)

    handed = read_handed(tmp_path / "mine.npz")

    assert handed.ids == (0, 1, 2)
    assert handed.images.dtype.is_floating_point
    assert handed.images.shape == (3, 1, 8, 8)
    assert len(handed.sha256) == 64


REFUSED = [
    ("an id twice", IDS * 0, IMAGES, "stands twice"),
    ("texts", IDS.astype(str), IMAGES, "whole numbers"),
    ("fractions", IDS + 0.5, IMAGES, "whole numbers"),
    ("pixels of 255", IDS, IMAGES.astype(np.uint8), "floats in"),
    ("complex images", IDS, IMAGES.astype(complex), "floats in"),
    ("a pickle", IDS, IMAGES.astype(object), "not an npz file"),
    ("fewer images", IDS, IMAGES[:2], "one image of"),
    ("no channel", IDS, IMAGES[:, 0], "one image of"),
    ("no list of ids", IDS[:, None], IMAGES, "one image of"),
]


@pytest.mark.parametrize(
    ("ids", "images", "told"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_arrays_that_say_something_else_are_refused(tmp_path, ids, images, told):
    np.savez(tmp_path / "mine.npz", ids=ids, images=images)

    with pytest.raises(UsageError, match=told):
        read_handed(tmp_path / "mine.npz")


def test_other_names_of_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "mine.npz", ids=IDS, adversarial=IMAGES)

    with pytest.raises(UsageError, match=r"write it with numpy\.savez\(path, ids=\.\.\., images"):
        read_handed(tmp_path / "mine.npz")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", IMAGES)

    with pytest.raises(UsageError, match="not an npz file"):
        read_handed(tmp_path / "mine.npy")


def test_a_cut_or_altered_file_is_refused(tmp_path):
    np.savez_compressed(
        tmp_path / "mine.npz", ids=IDS, images=np.random.default_rng(0).random(IMAGES.shape)
    )
    content = (tmp_path / "mine.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    middle = len(content) // 2
    (tmp_path / "altered.npz").write_bytes(content[:middle] + b"\0" * 40 + content[middle + 40 :])

    with pytest.raises(UsageError, match="not an npz file"):
        read_handed(tmp_path / "cut.npz")
    with pytest.raises(UsageError, match="not an npz file"):
        read_handed(tmp_path / "altered.npz")


def test_a_file_that_unpacks_to_too_much_is_refused_before(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "mine.npz", ids=IDS, images=IMAGES)
    monkeypatch.setattr(replay, "LARGEST", 1000)  # the three images take 1536 bytes

    with pytest.raises(UsageError, match="hand in fewer images"):
        read_handed(tmp_path / "mine.npz")


def test_an_entry_of_another_suite_or_version_is_refused(make, ten):
    other = make(alter=lambda content: content["suite"].update(name="eleven"))
    older = make(alter=lambda content: content["suite"].update(version=2))

    with pytest.raises(UsageError, match="suite eleven version 3, not of ten version 3"):
        refuse_other_suite(other, ten)
    with pytest.raises(UsageError, match="version 2, not of ten version 3; name its own"):
        refuse_other_suite(older, ten)


def test_a_reported_entry_cannot_be_tried_again(make, ten):
    def alter(content):
        content |= {"reported": True, "bits": {"clean": None, "attacks": {}}}

    with pytest.raises(UsageError, match="is reported, and has no bits"):
        refuse_other_suite(make(alter=alter), ten)


class Listed:
    """As much of an entry as choosing its images needs."""

    content = {"bits": {"clean": "abc"}}  # noqa: RUF012 - read only
    samples = tuple(range(100, 122))


def test_images_of_coupled_models_are_tried_again_with_their_groups():
    chosen = replay._chosen(Listed(), 6, 4)

    # of 22 images the last group has two
    starts = sorted({100 + (sample - 100) // 4 * 4 for sample in chosen})
    assert len(starts) == 2
    assert chosen == tuple(s for start in starts for s in range(start, min(start + 4, 122)))


def test_single_images_are_chosen_by_the_entry_alone():
    assert replay._chosen(Listed(), 5, 1) == replay._chosen(Listed(), 5, 1)
    assert len(replay._chosen(Listed(), 5, 1)) == 5
