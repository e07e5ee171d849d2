"""Flags that records raise."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.flags import FLAGS, Checks, record_flags
from harness.records import Record

CONTROLS = ["noise"]


def record(sample, attack, *, fooled, epsilon="8/255", flags=(), backwards=0):
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
        backwards=backwards,
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


def records_of(attack, fooled, *, count=8, **facts):
    """Records of an attack that fools the first images."""
    return [record(sample, attack, fooled=sample < fooled, **facts) for sample in range(count)]


def checks(epsilon="8/255", **fooled):
    """Eight checked images, of which each yardstick fools the first."""
    by_name = {name.replace("_", "-"): tuple(range(count)) for name, count in fooled.items()}
    return Checks(looked=16, samples=tuple(range(8)), epsilon=epsilon, fooled=by_name)


@pytest.mark.parametrize(
    ("yardstick", "reached", "flags"),
    [
        ("noise", 3, []),
        ("noise", 4, ["weaker-than-noise"]),
        ("one-step", 3, []),
        ("one-step", 4, ["weaker-than-one-step"]),
        ("black-box", 4, []),
        ("black-box", 5, ["weaker-than-black-box"]),
    ],
)
def test_an_attack_that_falls_behind_a_yardstick_is_flagged(yardstick, reached, flags):
    records = records_of("pgd", 3, backwards=10)

    assert record_flags(records, [], checks(**{yardstick: reached})) == flags


def test_the_weakest_attack_counts():
    records = [*records_of("pgd", 8, backwards=9), *records_of("fgsm", 2, backwards=1)]

    assert record_flags(records, [], checks(one_step=3)) == ["weaker-than-one-step"]


def test_controls_may_fall_behind_a_yardstick():
    records = [*records_of("pgd", 8), *records_of("noise", 0)]

    assert record_flags(records, CONTROLS, checks(one_step=3)) == []


def test_attacks_without_gradients_are_held_against_noise_alone():
    records = records_of("square", 0)

    assert record_flags(records, [], checks(black_box=8, one_step=8)) == []
    assert record_flags(records, [], checks(noise=8)) == ["weaker-than-noise"]


def test_attacks_that_aim_at_routes_need_not_fool():
    records = [*records_of("routes", 0, backwards=9), *records_of("pgd", 8, backwards=9)]

    assert record_flags(records, [], checks(one_step=8), exempt=["routes"]) == []


def test_gradients_at_another_epsilon_make_an_attack_white_box():
    # all that 4/255 fooled is carried to 8/255, where no passes were spent
    records = [*records_of("pgd", 3, epsilon="4/255", backwards=10), *records_of("pgd", 3)]

    assert record_flags(records, [], checks(black_box=5)) == ["weaker-than-black-box"]


def test_an_attack_that_does_not_run_at_the_epsilon_of_the_checks_is_left_out():
    records = records_of("pgd", 0, epsilon="4/255", backwards=10)

    assert record_flags(records, [], checks(noise=8, one_step=8, black_box=8)) == []


def test_only_checked_images_with_a_record_are_compared():
    fewer = records_of("pgd", 3, count=4)
    more = [record(sample, "pgd", fooled=sample >= 8, backwards=1) for sample in range(16)]

    assert record_flags(fewer, [], checks(one_step=3)) == []
    assert record_flags(more, [], checks(one_step=1)) == ["weaker-than-one-step"]


def test_carried_records_count_as_fooled():
    records = records_of("pgd", 3, flags=("carried",))

    assert record_flags(records, [], checks(one_step=3)) == []


def test_a_control_and_a_yardstick_raise_one_flag():
    records = [*records_of("noise", 4), *records_of("pgd", 3)]

    assert record_flags(records, CONTROLS, checks(noise=4)) == ["weaker-than-noise"]


def test_checks_survive_the_round_trip():
    found = checks(noise=1, black_box=3)

    assert Checks.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "flag",
    ["attack-failed", "weaker-than-noise", "weaker-than-one-step", "weaker-than-black-box"],
)
def test_each_flag_that_records_raise_has_a_meaning(flag):
    assert len(FLAGS[flag]) > 20


@pytest.mark.parametrize(
    ("changes", "is_broken"),
    [
        ({"norm": 0.009}, True),
        ({"norm": 0.01}, False),
        ({"norm": 0.011}, False),
        ({"norm": 0.009, "measures": {}}, False),
        ({"norm": 0.009, "adversarial_prediction": 1}, False),
        ({"norm": 0.009, "clean_prediction": 2}, False),
        ({"norm": 0.009, "view": "router"}, False),
    ],
    ids=["nearer", "equal", "farther", "uncertified", "robust", "clean-error", "a-part-alone"],
)
def test_a_model_fooled_within_its_certified_radius_is_flagged(changes, is_broken):
    found = {"measures": {"certified_radius": 0.01}, **changes}

    flags = record_flags([replace(record(0, "pgd", fooled=True), **found)], CONTROLS)

    assert ("certificate-broken" in flags) is is_broken


def test_a_diagnosis_that_fools_the_whole_model_breaks_a_certificate_too():
    measures = {"certified_radius": 0.01, "full_fooled": 1.0}
    found = replace(record(0, "pgd", fooled=False), norm=0.005, view="experts", measures=measures)

    assert record_flags([found], CONTROLS, exempt=["pgd"]) == ["certificate-broken"]
