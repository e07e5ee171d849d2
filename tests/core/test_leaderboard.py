"""The leaderboard: bits that can be recomputed, and suites that never rank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import UsageError
from harness.leaderboard import gather
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
