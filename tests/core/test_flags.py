"""Flags that records raise."""

from __future__ import annotations

import pytest

from harness.flags import FLAGS, record_flags
from harness.records import Record

CONTROLS = ["noise"]


def record(sample, attack, *, fooled, epsilon="8/255", flags=()):
    """A record of an image that the model has right when it is clean."""
    return Record(
        sample=sample,
        attack=attack,
        epsilon=epsilon,
        label=1,
        clean_prediction=1,
        clean_margin=0.5,
        adversarial_prediction=2 if fooled else 1,
        adversarial_margin=-0.5 if fooled else 0.5,
        flags=flags,
    )


def test_records_of_a_sound_attack_raise_no_flag():
    records = [record(0, "noise", fooled=False), record(0, "pgd", fooled=True)]

    assert record_flags(records, CONTROLS) == []


def test_no_records_raise_no_flag():
    assert record_flags([], CONTROLS) == []


def test_one_failed_record_flags_the_row():
    records = [record(0, "pgd", fooled=True), record(1, "pgd", fooled=False, flags=("failed",))]

    assert record_flags(records, CONTROLS) == ["attack-failed"]


def test_an_attack_that_fools_fewer_images_than_noise_is_flagged():
    records = [
        record(0, "noise", fooled=True),
        record(1, "noise", fooled=True),
        record(0, "pgd", fooled=True),
        record(1, "pgd", fooled=False),
    ]

    assert record_flags(records, CONTROLS) == ["weaker-than-noise"]


def test_one_weak_attack_beside_a_strong_one_is_flagged():
    records = [
        record(0, "noise", fooled=True),
        record(0, "pgd", fooled=True),
        record(0, "fgsm", fooled=False),
    ]

    assert record_flags(records, CONTROLS) == ["weaker-than-noise"]


def test_an_attack_as_strong_as_noise_is_not_flagged():
    records = [record(0, "noise", fooled=True), record(0, "pgd", fooled=True)]

    assert record_flags(records, CONTROLS) == []


def test_only_records_of_one_epsilon_are_compared():
    records = [
        record(0, "noise", fooled=True, epsilon="32/255"),
        record(0, "pgd", fooled=False, epsilon="8/255"),
        record(0, "pgd", fooled=True, epsilon="32/255"),
    ]

    assert record_flags(records, CONTROLS) == []


def test_controls_are_not_compared_with_each_other():
    records = [record(0, "noise", fooled=True), record(0, "clean", fooled=False)]

    assert record_flags(records, ["noise", "clean"]) == []


def test_an_attack_is_no_yardstick():
    records = [record(0, "pgd", fooled=True), record(0, "fgsm", fooled=False)]

    assert record_flags(records, CONTROLS) == []


def test_the_order_of_records_does_not_matter():
    records = [
        record(0, "noise", fooled=True),
        record(0, "pgd", fooled=False, flags=("failed",)),
    ]

    forwards = record_flags(records, CONTROLS)
    backwards = record_flags(records[::-1], CONTROLS)

    assert forwards == backwards == ["attack-failed", "weaker-than-noise"]


@pytest.mark.parametrize("flag", ["attack-failed", "weaker-than-noise"])
def test_each_flag_that_records_raise_has_a_meaning(flag):
    assert len(FLAGS[flag]) > 20
