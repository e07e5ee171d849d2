"""The leaderboard: bits that can be recomputed, and suites that never rank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.entries import written
from harness.errors import EntryError, UsageError
from harness.leaderboard import _with_breaks, gather, publish
from harness.store import Store
from harness.suite import find_suite


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"protocol": "descending"}, "publish a suite with 'nested'"),
        ({"box": "none"}, "publish a suite with box 'pixels'"),
    ],
    ids=["preview", "no box"],
)
def test_a_suite_whose_numbers_never_rank_is_refused(registry, tmp_path, changes, remedy):
    suite = replace(find_suite("digits-linf", registry), **changes)

    with pytest.raises(UsageError, match=remedy):
        gather(suite, Store(tmp_path), registry)


def test_an_empty_run_folder_makes_an_empty_board(registry, tmp_path):
    board = gather(find_suite("digits-linf", registry), Store(tmp_path), registry)

    assert board.rows == ()


def broken_before(make, tmp_path, alter=None):
    """An entry on the board that somebody broke, and a new one of the same row."""
    path = tmp_path / "digits.json"
    found = {"epsilon": "16/255", "broken": "gAA=", "source": "somebody", "sha256": ""}
    known = make(alter=lambda content: content.update(best_known=[found]))
    path.write_bytes(written(known))
    return _with_breaks(make(alter=alter), path).content["best_known"], [found]


def test_what_others_broke_of_the_same_weights_is_kept(make, tmp_path):
    kept, found = broken_before(make, tmp_path)

    assert kept == found


OTHERS = {
    "weights": lambda content: content["weights"].update(sha256="b" * 64),
    "images": lambda content: content["samples"].update(ids="1-10"),
    "copy": lambda content: content["data"].update(fingerprint="e"),
    "balls": lambda content: content["suite"].update(norm="l2"),
}


@pytest.mark.parametrize("alter", OTHERS.values(), ids=OTHERS)
def test_what_broke_other_weights_images_or_balls_is_dropped(make, tmp_path, alter):
    kept, _ = broken_before(make, tmp_path, alter)

    assert kept == []


def test_nothing_is_written_through_a_link(registry, ten, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard/ten").symlink_to(tmp_path / "outside")
    board = gather(ten, Store(tmp_path / "runs"), registry)

    with pytest.raises(EntryError, match="leaderboard/ten: is a link"):
        publish(board, tmp_path / "leaderboard", registry)
    assert list((tmp_path / "outside").iterdir()) == []
