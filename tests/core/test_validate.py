"""Boards that are what they say, and each way in which one is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from harness.bits import pack
from harness.entries import read_entry
from harness.validate import check_board, check_entry

FROZEN = Path(__file__).parents[1] / "data" / "entry-1.json"


def ones(text):
    return pack([letter == "1" for letter in text])


def broke(text="1000000000", epsilon="16/255"):
    return {"epsilon": epsilon, "broken": ones(text), "source": "somebody", "sha256": "b" * 64}


def errors(findings):
    return [finding.what for finding in findings if finding.is_error]


def set_at(*path, to):
    *parents, last = path

    def alter(content):
        for key in parents:
            content = content[key]
        content[last] = to

    return alter


def test_an_honest_entry_has_no_findings(make, ten, registry):
    assert list(check_entry(make(), ten, registry)) == []


def test_an_honest_board_has_no_findings(make, board, ten, registry):
    folder = board(make(), make("vit/digits.standard", far="1100000000"), make(seed=1))

    assert list(check_board(ten, "ten", folder, registry)) == []


PGD = ("bits", "attacks", "pgd")
HIGH = {"value": 0.9, "low": 0.6, "high": 1.0, "n": 10}
EMPTY_CARD = {"num_experts": 8, "num_selected": 2}
OWN = {"view": "full", "is_control": False, "robust": {}}
WRONG = [
    ("a value", set_at("values", "robust-accuracy", "16/255", to=HIGH), "is not what its bits"),
    ("a value of one epsilon only", set_at("values", "robust-accuracy", to={}), "is not what its"),
    ("a value of another shape", set_at("values", "robust-accuracy", to=HIGH), "is not what its"),
    ("no value", lambda content: content["values"].pop("auc"), "value 'auc' is missing"),
    ("a value of its own", set_at("values", "mean-accuracy", to=HIGH), "is not the suite's"),
    ("a count", set_at("values", "parameters", "value", to=8), "parameters is not what"),
    ("facts that lack one", set_at("facts", to={}), "parameters cannot be computed"),
    ("a bit", set_at(*PGD, "robust", "16/255", to=ones("1110000000")), "is not what its bits"),
    ("a clean bit", set_at("bits", "clean", to=ones("1111111111")), "is not what its bits"),
    ("robust when attacked more", set_at(*PGD, "robust", "8/255", to=ones("0" * 10)), "less"),
    ("robust, not right", set_at("bits", "clean", to=ones("0" * 10)), "wrong when clean"),
    ("bits of 24 images", set_at("bits", "clean", to=ones("0" * 24)), "bits for 24 samples"),
    ("weights", set_at("weights", "sha256", to="b" * 64), "weights 'bbb"),
    ("images", set_at("data", "fingerprint", to="b"), "data 'b' is not what was measured"),
    ("a seed", set_at("model", "seed", to=5), "seed 5 is not what was measured, '0'"),
    ("precision", set_at("precision", to="float32+tf32"), "precision 'float32\\+tf32'"),
    ("precision unmarked", set_at("precision", to="float32+tf32"), "'tf32', which the precision"),
    ("a row", set_at("model", "row", to="vit/digits.standard"), "is named vit/digits.standard"),
    ("experts", set_at("model", "card", to=EMPTY_CARD), "experts are not those"),
    ("no flag", set_at("checks", to={"flags": ["one-expert"]}), "which the checks raised"),
    ("a flag", set_at("flags", to=["fine"]), "flag 'fine' is not known"),
    ("no attack", lambda content: content["bits"]["attacks"].pop("pgd"), "'pgd' is missing"),
    ("an attack", set_at("bits", "attacks", "my", to=OWN), "'my' is not the suite's"),
    ("an attack left out", set_at("not_applicable", to=["pgd"]), "'pgd' applies to the model"),
    ("a view", set_at(*PGD, "view", to="router"), "not judged as the suite says"),
    ("a control", set_at(*PGD, "is_control", to=True), "not judged as the suite says"),
    ("no epsilon", set_at(*PGD, "robust", to={}), "has not the suite's epsilons"),
    ("a protocol", set_at("suite", "protocol", to="independent"), "its protocol is not that of"),
    ("a norm", set_at("suite", "norm", to="l2"), "its norm is not that of the suite"),
    ("a radius", set_at("suite", "epsilons", to=[["8/255", 0.1], ["16/255", 0.2]]), "its epsilons"),
    ("attacks", set_at("ingredients", "suite", "attacks", to=[]), "its attacks, epsilons or"),
    ("no ingredients", set_at("ingredients", to={}), "its attacks, epsilons or images"),
    ("ids", set_at("samples", "ids", to="1-10"), "not the suite's in the suite's order"),
    ("order", set_at("samples", "ids", to="1,0,2-9"), "not the suite's in the suite's order"),
    ("another suite", set_at("suite", "name", to="eleven"), "is of suite eleven, not ten"),
    ("broken bits", set_at("best_known", to=[broke("1" * 24)]), "bits for 24 samples"),
]  # fmt: skip


@pytest.mark.parametrize(("alter", "told"), [row[1:] for row in WRONG], ids=[r[0] for r in WRONG])
def test_an_altered_entry_is_found_out(make, ten, registry, read_back, alter, told):
    entry = read_back(make(alter=alter))

    found = errors(check_entry(entry, ten, registry))

    assert any(re.search(told, what) for what in found), found


def test_noise_that_beats_an_attack_must_be_flagged(make, ten, registry):
    # noise fools seven images at 16/255, PGD six
    entry = make(noise="1110000000", far="1111000000")

    found = errors(check_entry(entry, ten, registry))

    assert found == ["flag 'weaker-than-noise', which the bits raise, is missing"]


def test_a_limited_row_is_noted_not_refused(make, ten, registry):
    def alter(content):
        content["flags"] = ["limited"]
        content["samples"] = {"count": 10, "ids": "0-8,9"}

    found = list(check_entry(make(alter=alter), ten, registry))

    assert [finding.is_error for finding in found] == [False]


def test_a_row_of_an_older_version_is_noted_and_not_compared(make, ten, registry):
    entry = make(alter=set_at("suite", "version", to=2))

    [found] = check_entry(entry, ten, registry)

    assert not found.is_error
    assert "version 2, the suite is 3" in found.what


def test_without_clean_bits_what_needs_them_is_noted_and_the_rest_is_checked(make, ten, registry):
    honest = make(alter=set_at("bits", "clean", to=None))
    wrong = make(
        far="1110000000", alter=set_at("values", honest.content["values"] and "auc", to=HIGH)
    )
    wrong.content["bits"]["clean"] = None
    wrong.content["values"]["robust-accuracy"]["16/255"] = HIGH

    notes = [finding.what for finding in check_entry(honest, ten, registry)]

    assert notes == [
        "clean-accuracy: nothing proves it without clean bits",
        "auc: nothing proves it without clean bits",
    ]
    assert errors(check_entry(wrong, ten, registry)) == [
        "robust-accuracy is not what its bits give"
    ]


def test_the_frozen_entry_is_not_mistaken_for_todays_suite(registry):
    from harness.suite import find_suite

    today = find_suite("digits-linf", registry)
    entry = read_entry(FROZEN)

    same_version = errors(check_entry(entry, replace(today, version=1), registry))
    (note,) = check_entry(entry, today, registry)

    assert same_version == [
        "its attacks, epsilons or images are not those of the suite",
        "attack 'moe-battery' is missing",
    ]
    assert (note.what, note.is_error) == (
        "was measured under version 1, the suite is 2",
        False,
    )
