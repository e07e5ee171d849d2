"""Curves: known measures to points worked out by hand, and what must not be measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.api import AttackFacts, Evidence, Record
from harness.plugins import load_plugins
from harness_metrics.curves import error_by_attack, input_gradient
from harness_metrics.loads import entropy, expert_shares, largest_share, variation
from harness_metrics.routing import drop_rate, executed, flip_rate, mediation

KNOWN = {
    "pgd": AttackFacts(is_control=False, shows_last=True),
    "apgd": AttackFacts(is_control=False, shows_last=False),
    "noise": AttackFacts(is_control=True, shows_last=False),
}
REGISTRY = load_plugins()
CURVES = [
    name for name in REGISTRY.names("metrics") if REGISTRY.find("metrics", name).card.is_curve
]
ROUTED = [name for name in CURVES if name not in ("error-by-attack", "input-gradient")]


def record(sample, attack="pgd", *, clean=1, adversarial=1, **measures):
    named = {name.replace("__", "."): value for name, value in measures.items()}
    return Record(sample, attack, "0.1", 1, clean, 0.0, adversarial, 0.0, measures=named)


def evidence(*records, protocol="independent"):
    return Evidence(records, {"0.1": 0.1}, "0.1", {}, protocol, attacks=KNOWN)


def points(values):
    return {(value.group, value.series): value.value for value in values}


TWO = (
    record(
        0, routing_change__layer0=0.0, noise__routing_change__layer0=0.0,
        chance__routing_change__layer0=0.75, routing_change__layer10=1.0,
    ),
    record(
        1, routing_change__layer0=0.5, noise__routing_change__layer0=0.25,
        chance__routing_change__layer0=0.75, routing_change__layer10=1.0,
    ),
)  # fmt: skip


def test_a_layers_change_stands_beside_noise_and_chance():
    found = executed(evidence(*TWO))

    assert points(found)["layer 0", "pgd"] == 0.25
    assert points(found)["layer 0", "noise like pgd"] == 0.125
    assert points(found)["layer 0", "chance"] == 0.75
    assert [value.n for value in found[:3]] == [2, 2, None]


def test_layers_come_by_their_number():
    assert list(dict.fromkeys(value.group for value in executed(evidence(*TWO)))) == [
        "layer 0",
        "layer 10",
    ]


def test_the_order_of_the_records_changes_no_point():
    assert points(executed(evidence(*reversed(TWO)))) == points(executed(evidence(*TWO)))


def test_a_measure_is_not_taken_for_another_whose_name_begins_alike():
    both = record(0, routing_change__layer0=0.5, routing_change_intended__layer0=0.1)

    assert points(executed(evidence(both)))["layer 0", "pgd"] == 0.5


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("protocol", ["nested", "descending"])
def test_no_curve_of_routes_is_measured_under_another_protocol(name, protocol):
    values = REGISTRY.find("metrics", name).load()(evidence(*TWO, protocol=protocol))

    assert {value.value for value in values} == {None}
    assert all("protocol 'independent'" in value.reason for value in values)


@pytest.mark.parametrize("name", ROUTED)
def test_no_curve_of_routes_is_measured_where_the_attack_does_not_show_its_last_iterate(name):
    records = [replace(item, attack="apgd") for item in TWO]

    values = REGISTRY.find("metrics", name).load()(evidence(*records))

    assert {value.value for value in values} == {None}
    assert all("last iterates" in value.reason for value in values)


def test_controls_are_no_attacks_on_routes():
    assert executed(evidence(replace(TWO[0], attack="noise"))) == ()


def test_what_was_not_measured_says_so():
    [value] = flip_rate(evidence(record(0)))

    assert (value.value, value.epsilon) == (None, "0.1")
    assert "no probe" in value.reason


def test_drops_stand_beside_those_of_clean_images():
    one = record(0, drop_rate__layer0=0.5, clean__drop_rate__layer0=0.25)

    assert points(drop_rate(evidence(one)))["layer 0", "clean"] == 0.25


def loaded(sample, first, second):
    return record(sample, load__layer0__expert0=first, load__layer0__expert1=second)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        # sums 3 and 1 of 4: -(3/4 log 3/4 + 1/4 log 1/4) / log 2
        (entropy, 0.8112781),
        (largest_share, 0.75),
        # deviation 1 over mean 2
        (variation, 0.5),
    ],
)
def test_loads_are_summed_over_images_first(curve, expected):
    found = curve(evidence(loaded(0, 2.0, 0.0), loaded(1, 1.0, 1.0)))

    [value] = [item for item in found if item.series == "pgd"]
    assert value.value == pytest.approx(expected)
    assert value.low <= value.value <= value.high


def test_an_expert_that_does_nothing_has_no_share_and_leaves_no_entropy():
    idle = evidence(loaded(0, 2.0, 0.0))

    assert points(expert_shares(idle))["layer 0", "pgd, expert 1"] == 0
    assert points(entropy(idle))["layer 0", "pgd"] == 0


def test_mediation_is_the_share_right_of_each_combination():
    records = [
        record(0, mediation__experts=1.0, mediation__router=0.0, mediation__both=0.0),
        record(1, mediation__experts=0.0, mediation__router=0.0, mediation__both=0.0),
    ]

    found = {value.series: value for value in mediation(evidence(*records))}

    assert (found["pgd, experts"].value, found["pgd, experts"].n) == (0.5, 2)
    assert found["pgd, router"].value == 0
    assert found["noise like pgd, both"].value is None


def test_errors_are_counted_by_attack_whatever_the_clean_image_was():
    records = [
        record(0, "pgd", adversarial=0),
        record(0, "noise"),
        record(1, "pgd", clean=0),
        record(1, "noise", clean=0, adversarial=0),
    ]

    # wrong: under pgd sample 0, under noise sample 1, clean sample 1
    assert points(error_by_attack(evidence(*records))) == {
        ("", "clean"): 0.5,
        ("", "pgd"): 0.5,
        ("", "noise"): 0.5,
    }


def test_gradients_are_averaged_at_clean_and_at_attacked_images():
    records = [
        record(0, input_gradient=2.0, clean__input_gradient=1.0),
        record(1, input_gradient=4.0, clean__input_gradient=1.0),
    ]

    assert points(input_gradient(evidence(*records))) == {("", "pgd"): 3.0, ("", "clean"): 1.0}


def test_clean_images_stand_once_beside_several_attacks():
    one = record(0, input_gradient=2.0, clean__input_gradient=1.0)

    found = input_gradient(evidence(one, replace(one, attack="noise")))

    assert [value.series for value in found] == ["pgd", "clean", "noise"]
