"""Where rows stand: order, ranges, seeds, and who never ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import EntryError
from harness.inference import Ranks
from harness.page import entry_file
from harness.standing import read_board, standing


def rows(places):
    return [place.entry.row for place in places]


def test_rows_stand_by_the_headline_then_clean_then_name(make, ten):
    entries = [
        make("c.standard", far="1100000000"),
        make("b.standard", far="1110000000", clean="1111111100", noise="1111111100"),
        make("d.standard", far="1110000000"),
        make("a.standard", far="1100000000"),
    ]

    found = standing(ten, "ten", entries)

    # 3 of 10 with 9 clean, 3 with 8 clean, 2 and 2 by name
    assert rows(found.ranked) == ["d.standard", "b.standard", "a.standard", "c.standard"]
    assert found.below == ()


def test_the_order_of_files_changes_nothing(make, ten):
    entries = [make("a.standard"), make("b.standard", far="1" * 2 + "0" * 8)]

    assert standing(ten, "ten", entries).ranked == standing(ten, "ten", entries[::-1]).ranked


def test_rows_that_the_images_tell_apart_have_ranks_of_their_own(make, ten):
    every, none = "1111111110", "0000000000"
    entries = [
        make("a.standard", near=every, far=every),
        make("b.standard", near=every, far=every),
        make("c.standard", near=every, far=none),
    ]

    found = standing(ten, "ten", entries)

    # nine images to none: p = 1/512 for two of six pairs, surely after Holm; a and b share ranks
    assert [place.ranks for place in found.ranked] == [Ranks(1, 2), Ranks(1, 2), Ranks(3, 3)]


def test_the_lowest_seed_stands_for_a_model(make, ten):
    entries = [make(seed=2), make(seed=1), make("b.standard")]

    found = standing(ten, "ten", entries)

    assert sorted(rows(found.ranked)) == ["b.standard", "cnn/digits.standard (seed 1)"]
    assert [entry.row for entry in found.seeds] == ["cnn/digits.standard (seed 2)"]


def reported(content):
    content |= {"reported": True, "bits": {"clean": None, "attacks": {}}}


def of_flag(flag):
    return lambda content: content.update(flags=[flag])


def of_suite(**changes):
    return lambda content: content["suite"].update(changes)


def without_headline(content):
    content["suite"] |= {"epsilons": [["8/255", 8 / 255]], "headline": "8/255"}
    for about in content["bits"]["attacks"].values():
        del about["robust"]["16/255"]


BELOW = [
    ("reported", reported, "reported: no bits of its images, so that nobody can check it"),
    ("limited", of_flag("limited"), "flagged limited"),
    ("transferred", of_flag("transfer"), "flagged transfer"),
    ("another version", of_suite(version=2), "measured under version 2 of the suite"),
    ("a preview", of_suite(protocol="descending"), "measured under a protocol that never ranks"),
    ("no box", of_suite(box="none"), "measured under a protocol that never ranks"),
    ("no headline", without_headline, "no bits at 16/255"),
    ("other images", lambda c: c["samples"].update(ids="1-10"), "other images than most rows"),
    ("another copy", lambda c: c["data"].update(fingerprint="e"), "other images than most rows"),
]


@pytest.mark.parametrize(("alter", "reason"), [row[1:] for row in BELOW], ids=[r[0] for r in BELOW])
def test_a_row_below_the_line_says_why(make, ten, alter, reason):
    entries = [make("a.standard"), make("b.standard"), make("c.standard", alter=alter)]

    found = standing(ten, "ten", entries)

    assert rows(found.ranked) == ["a.standard", "b.standard"]
    assert rows(found.below) == ["c.standard"]
    assert reason in found.below[0].reason
    assert found.below[0].ranks is None


def test_rows_of_a_model_space_suite_may_have_images_of_their_own_size(make, ten):
    suite = replace(ten, data=replace(ten.data, space="model"))
    other = make("c.standard", alter=lambda content: content["data"].update(fingerprint="e"))

    assert standing(suite, "ten", [make("a.standard"), other]).below == ()


def test_a_flag_alone_does_not_cost_the_rank(make, ten):
    assert standing(ten, "ten", [make(alter=of_flag("saturated"))]).below == ()


def test_an_empty_board_has_no_rows(ten):
    found = standing(ten, "ten", [])

    assert (found.ranked, found.below, found.seeds) == ((), (), ())


def without_value(*path):
    def alter(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = {"value": None, "low": None, "high": None, "n": None}

    return alter


def test_a_row_without_its_number_stands_last(make, ten):
    lacking = make("a.standard", alter=without_value("values", "robust-accuracy", "16/255"))

    found = standing(ten, "ten", [lacking, make("b.standard", far="0000000000")])

    assert rows(found.ranked) == ["b.standard", "a.standard"]


def test_an_error_that_is_missing_is_no_error_of_zero(make, ten):
    suite = replace(ten, metrics=("error-rate",))

    def alter(value):
        number = {"value": value, "low": None, "high": None, "n": None}
        return lambda content: content.update(values={"error-rate": {"16/255": number}})

    entries = [
        make("a.standard", alter=alter(None)),
        make("b.standard", alter=alter(0.4)),
        make("c.standard", alter=alter(0.3)),
    ]

    found = standing(suite, "ten", entries)

    assert rows(found.ranked) == ["c.standard", "b.standard", "a.standard"]
    assert [place.ranks for place in found.ranked] == [None] * 3


def test_a_number_that_the_suite_does_not_ask_for_changes_no_order(make, ten):
    best = {"16/255": {"value": 1.0, "low": None, "high": None, "n": 10}}
    cheat = make(
        "b.standard",
        far="0000000000",
        alter=lambda content: content["values"].update({"mean-accuracy": best}),
    )

    found = standing(ten, "ten", [make("a.standard"), cheat])

    assert rows(found.ranked) == ["a.standard", "b.standard"]


def test_a_board_is_read_by_file_name(make, board):
    folder = board(make("b/x.standard"), make("a.standard"), make("a.standard", seed=3))

    found = read_board(folder / "ten")

    assert [entry_file(entry) for entry in found] == [
        "a.standard.json",
        "a.standard@seed3.json",
        "b/x.standard.json",
    ]


def test_a_model_may_be_named_like_a_file(make, board):
    folder = board(make("a.json/b.standard"))

    assert len(read_board(folder / "ten")) == 1


def test_links_are_refused(make, board, tmp_path):
    folder = board(make())
    (folder / "ten/out").symlink_to(tmp_path)

    with pytest.raises(EntryError, match=r"ten/out: is a link; put the file itself there"):
        read_board(folder / "ten")
