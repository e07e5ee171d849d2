"""Metrics: known records to numbers worked out by hand."""

from __future__ import annotations

import random

import pytest

from harness.api import Evidence, Record
from harness_metrics.accuracy import area_under_curve, clean_accuracy, robust_accuracy
from harness_metrics.cost import active_parameters, gflops, parameters

EPSILONS = {"0.1": 0.1, "0.3": 0.3}


def record(sample, attack, epsilon, *, clean=1, adversarial=1):
    return Record(
        sample=sample,
        attack=attack,
        epsilon=epsilon,
        label=1,
        clean_prediction=clean,
        clean_margin=0.0,
        adversarial_prediction=adversarial,
        adversarial_margin=0.0,
    )


def evidence(records):
    facts = {"parameters": 1000, "active_parameters": 250, "flops": 3_000_000_000}
    return Evidence(records, EPSILONS, "0.1", facts)


RECORDS = [
    # sample 0 stands everything
    *(record(0, attack, epsilon) for attack in "ab" for epsilon in EPSILONS),
    # sample 1 falls to attack b at 0.3 only
    record(1, "a", "0.1"), record(1, "a", "0.3"),
    record(1, "b", "0.1"), record(1, "b", "0.3", adversarial=0),
    # sample 2 falls to a at 0.1 and to a at 0.3
    record(2, "a", "0.1", adversarial=0), record(2, "a", "0.3", adversarial=0),
    record(2, "b", "0.1"), record(2, "b", "0.3"),
    # sample 3 is wrong on the clean image
    *(record(3, attack, epsilon, clean=0) for attack in "ab" for epsilon in EPSILONS),
]  # fmt: skip


def test_clean_accuracy_is_the_share_right_of_all_images():
    [value] = clean_accuracy(evidence(RECORDS))

    assert (value.value, value.n) == (0.75, 4)


def test_robust_accuracy_takes_the_worst_attack_image_by_image():
    values = robust_accuracy(evidence(RECORDS))

    # 0.1: samples 0 and 1; 0.3: sample 0
    assert [(value.epsilon, value.value, value.n) for value in values] == [
        ("0.1", 0.5, 4),
        ("0.3", 0.25, 4),
    ]


def test_the_area_is_the_trapezoid_over_the_largest_epsilon():
    [value] = area_under_curve(evidence(RECORDS))

    # heights 0.75, 0.5, 0.25 at 0, 0.1, 0.3: (0.1 * 0.625 + 0.2 * 0.375) / 0.3
    assert value.value == pytest.approx(0.1375 / 0.3)
    assert value.low <= value.value <= value.high


@pytest.mark.parametrize("metric", [clean_accuracy, robust_accuracy, area_under_curve])
def test_the_order_of_the_records_changes_no_value(metric):
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))

    values = [value.value for value in metric(evidence(shuffled))]

    assert values == pytest.approx([value.value for value in metric(evidence(RECORDS))])


@pytest.mark.parametrize(
    ("metric", "number"), [(parameters, 1000), (active_parameters, 250), (gflops, 3.0)]
)
def test_costs_are_exact_numbers_without_an_interval(metric, number):
    [value] = metric(evidence(RECORDS))

    assert (value.value, value.low, value.n) == (number, None, None)
