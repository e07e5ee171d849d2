"""Near names for names that are not known."""

from __future__ import annotations

import pytest

from harness.hints import did_you_mean

MANY = [f"preset-{number:02d}" for number in range(13)]


def test_the_nearest_name_is_offered():
    hint = did_you_mean("pdg", ["fgsm", "pgd"])

    assert hint == "; did you mean 'pgd'?"


def test_case_does_not_hide_a_near_name():
    hint = did_you_mean("LINF", ["linf", "l2"])

    assert hint == "; did you mean 'linf'?"


def test_a_name_is_offered_as_it_was_registered():
    hint = did_you_mean("fgsm", ["FGSM-RS"])

    assert hint == "; did you mean 'FGSM-RS'?"


def test_at_most_three_names_are_offered():
    hint = did_you_mean("preset", MANY)

    assert hint.count(" or ") == 2


def test_few_names_are_all_told_where_none_is_near():
    hint = did_you_mean("zzz", ["pgd", "fgsm"])

    assert hint == "; known are fgsm, pgd"


@pytest.mark.parametrize("known", [[], MANY], ids=["none", "too-many"])
def test_no_names_are_told_where_there_are_none_or_too_many(known):
    hint = did_you_mean("zzz", known)

    assert hint == ""


@pytest.mark.parametrize("known", [["pgd"], ["fgsm"], MANY], ids=["near", "few", "too-many"])
def test_the_command_that_lists_the_names_comes_last(known):
    hint = did_you_mean("pdg", known, see="harness ls attacks")

    assert hint.startswith("; ")
    assert hint.endswith("see 'harness ls attacks'")


def test_the_order_of_the_known_names_does_not_matter():
    forwards = did_you_mean("preset", MANY)

    backwards = did_you_mean("preset", reversed(MANY))

    assert backwards == forwards
