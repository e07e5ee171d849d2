"""Rows against each other, by bits counted by hand."""

from __future__ import annotations

import pytest

from harness.compare import claim_in_words, claimed, compared, in_words
from harness.errors import UsageError

EVERY = "1111111110"
NEAR = {"near": EVERY}


def test_the_difference_counts_images_that_only_one_withstands(make):
    # only the first: 3, 4, 5, 6; only the second: 8
    first, second = make("a.x", far="1111111000", **NEAR), make("b.x", far="1110000010", **NEAR)

    [item] = compared([first, second], ["16/255"])

    assert (item.found.only_first, item.found.only_second, item.found.n) == (4, 1, 10)
    assert item.found.difference == pytest.approx(0.3)
    # two-sided exact: (1 + 5) * 2 / 2**5
    assert item.found.p_value == item.p_adjusted == pytest.approx(0.375)
    assert item.verdict == "cannot be told apart"


def test_a_sure_difference_names_the_better_row(make):
    first, second = make("a.x", far="0" * 10, **NEAR), make("b.x", far=EVERY, **NEAR)

    [item] = compared([first, second], ["16/255"])

    # nine of nine: 2 / 2**9
    assert item.p_adjusted == pytest.approx(2 / 512)
    assert item.verdict == "b.x is more robust"


def test_words_say_what_the_numbers_say(make):
    first, second = make("a.x", far=EVERY, **NEAR), make("b.x", far="0" * 10, **NEAR)

    words = list(in_words(compared([first, second], ["16/255"])[0]))

    assert words[0].startswith("At 16/255, a.x against b.x: +90.0 points [")
    assert words[0].endswith("of robust accuracy, n = 10 images.")
    assert words[1] == (
        "9 images only the first withstands, 0 only the second; McNemar (exact) p = 0.00391, "
        "0.00391 after Holm."
    )
    assert words[2].startswith("Verdict: a.x is more robust; with this many images ")


def test_holm_counts_every_pair_and_epsilon_that_is_shown(make):
    entries = [
        make("a.x", far=EVERY, **NEAR),
        make("b.x", far="1100000000", **NEAR),
        make("c.x", far="0" * 10, **NEAR),
    ]

    found = compared(entries, ["8/255", "16/255"])

    assert [(item.first, item.second, item.epsilon) for item in found] == [
        ("a.x", "b.x", "8/255"),
        ("a.x", "c.x", "8/255"),
        ("b.x", "c.x", "8/255"),
        ("a.x", "b.x", "16/255"),
        ("a.x", "c.x", "16/255"),
        ("b.x", "c.x", "16/255"),
    ]
    # raw: 1, 1, 1, 2/2**7, 2/2**9, 2/2**2; the smallest times 6, the next times 5, then 4
    expected = [1, 1, 1, 5 * 2 / 2**7, 6 * 2 / 2**9, 1]
    assert [item.p_adjusted for item in found] == pytest.approx(expected)


def test_a_smaller_ball_counts_in_a_larger_one(make):
    # image 0 falls at 8/255, so it has fallen at 16/255, whatever is recorded there
    first = make("a.x", near="0" + EVERY[1:], far=EVERY)

    [item] = compared([first, make("b.x", far=EVERY, **NEAR)], ["16/255"])

    assert (item.found.only_first, item.found.only_second) == (0, 1)


def set_in(part, **values):
    return lambda content: content[part].update(values)


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (set_in("samples", ids="1-10"), "stand on different images"),
        (set_in("suite", version=2), "different suite, version or board"),
        (set_in("suite", board="ten@copy"), "different suite, version or board"),
        (set_in("data", fingerprint="e"), "different copies"),
    ],
    ids=["images", "version", "board", "copy"],
)
def test_rows_on_different_images_are_refused(make, alter, told):
    with pytest.raises(UsageError, match=told):
        compared([make("a.x"), make("b.x", alter=alter)], ["16/255"])


def reported(content):
    content |= {"reported": True, "bits": {"clean": None, "attacks": {}}}


def test_a_row_without_bits_is_refused_by_name(make):
    with pytest.raises(UsageError, match=r"b\.x: has no bits at 16/255"):
        compared([make("a.x"), make("b.x", alter=reported)], ["16/255"])
    with pytest.raises(UsageError, match=r"a\.x: has no bits at 9/255"):
        compared([make("a.x"), make("b.x")], ["9/255"])


def seeds(make, row, far, count=5):
    return [make(row, far=far, near=EVERY, seed=seed) for seed in range(count)]


def test_a_recipe_with_five_seeds_is_claimed_better(make):
    entries = seeds(make, "a.x", EVERY) + seeds(make, "b.x", "0" * 10)

    [item] = claimed(entries, ["a.x", "b.x"], ["16/255"])

    assert (item.first, item.second, item.found.verdict) == ("a.x", "b.x", "supported")
    assert item.found.difference == pytest.approx(0.9)
    words = list(claim_in_words(item))
    assert words[0] == "At 16/255: a.x is more robust than b.x: supported."
    assert words[1].startswith("+90.0 [")
    assert words[1].endswith("points, over 5 and 5 training seeds.")
    assert words[2].startswith("Spread over seeds (standard deviation): 0.0 and 0.0 points")


def test_fewer_seeds_leave_a_claim_undecided(make):
    entries = seeds(make, "a.x", EVERY) + seeds(make, "b.x", "0" * 10, count=1)

    [item] = claimed(entries, ["a.x", "b.x"], ["16/255"])

    words = list(claim_in_words(item))
    assert words[0].endswith("undecided (fewer than 5 seeds).")
    assert words[1] == "+90.0 points, over 5 and 1 training seeds."
    assert "0.0 and unknown points" in words[2]


def test_the_first_recipe_is_held_against_each_other_one(make):
    entries = seeds(make, "a.x", EVERY) + seeds(make, "b.x", EVERY) + seeds(make, "c.x", EVERY)

    found = claimed(entries, ["b.x", "a.x", "c.x"], ["8/255", "16/255"])

    assert [(item.first, item.second, item.epsilon) for item in found] == [
        ("b.x", "a.x", "8/255"),
        ("b.x", "c.x", "8/255"),
        ("b.x", "a.x", "16/255"),
        ("b.x", "c.x", "16/255"),
    ]
    assert {item.found.verdict for item in found} == {"undecided"}


def test_a_recipe_that_is_not_on_the_board_is_named(make):
    with pytest.raises(UsageError, match=r"row 'b\.x' is not on the board"):
        claimed([make("a.x")], ["a.x", "b.x"], ["16/255"])


def test_a_recipe_with_one_seed_on_other_images_is_refused(make):
    other = make("b.x", seed=1, alter=set_in("samples", ids="1-10"))

    with pytest.raises(UsageError, match="different images"):
        claimed([make("a.x"), make("b.x"), other], ["a.x", "b.x"], ["16/255"])


def test_a_recipe_without_bits_at_an_epsilon_is_refused(make):
    with pytest.raises(UsageError, match=r"a\.x: has no bits at 9/255"):
        claimed([make("a.x"), make("b.x")], ["a.x", "b.x"], ["9/255"])
