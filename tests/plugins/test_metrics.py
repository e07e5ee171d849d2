"""Metrics: known records to numbers worked out by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from harness.api import AttackFacts, Evidence, Record, Routing
from harness.testing import LinearModel, ToyMoE, observed
from harness.threat import ThreatModel
from harness_metrics.accuracy import (
    area_under_curve,
    clean_accuracy,
    error_rate,
    mean_accuracy,
    robust_accuracy,
)
from harness_metrics.cost import active_parameters, gflops, parameters
from harness_metrics.routing import routing_change
from harness_metrics.routing_probes import routing_change as probe

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


def test_an_error_rate_is_what_robust_accuracy_leaves():
    values = error_rate(evidence(RECORDS))

    # 0.1: samples 2 and 3; 0.3: all but sample 0
    assert [(value.epsilon, value.value) for value in values] == [("0.1", 0.5), ("0.3", 0.75)]


def test_mean_accuracy_averages_over_attacks_and_forgets_the_clean_image():
    values = mean_accuracy(evidence(RECORDS))

    # 0.1: 1, 1, 1/2 and, wrong on the clean image but right under both attacks, 1
    # 0.3: 1, 1/2, 1/2, 1
    assert [value.value for value in values] == [3.5 / 4, 3 / 4]
    assert [value.epsilon for value in values] == ["0.1", "0.3"]


def test_what_fools_in_a_ball_fools_in_a_larger_one_where_no_attack_looked():
    records = [
        record(0, "once", "0.1", adversarial=0),
        record(0, "all", "0.1"),
        record(0, "all", "0.3"),
    ]

    nested = robust_accuracy(replace(evidence(records), protocol="nested"))
    independent = robust_accuracy(evidence(records))

    assert [value.value for value in nested] == [0, 0]
    assert [value.value for value in independent] == [0, 1]


def routing(experts, kept=None):
    chosen = torch.tensor(experts)
    gates = torch.full((*chosen.shape[:2], 4), 0.25)
    return Routing(gates, gates, chosen, torch.tensor(kept) if kept else chosen >= 0)


@pytest.mark.parametrize(
    ("before", "after", "kept", "overlap"),
    [
        ([[[0, 1]]], [[[1, 0]]], None, 1.0),
        ([[[0, 1]]], [[[0, 2]]], None, 1 / 3),
        ([[[0, 1]]], [[[2, 3]]], None, 0.0),
        ([[[0, 1]]], [[[0, 1]]], [[[True, False]]], 1 / 2),
        ([[[0, 1]]], [[[0, 1]]], [[[False, False]]], 0.0),
    ],
    ids=["order", "one replaced", "both replaced", "one dropped", "all dropped"],
)
def test_the_overlap_of_expert_sets_by_hand(before, after, kept, overlap):
    found = routing(before).overlap(routing(after, kept))

    assert found.tolist() == [[pytest.approx(overlap)]]


def observation_of(model, clean, attacked):
    labels = torch.zeros(len(clean), dtype=torch.int64)
    return observed(model, labels, clean, attacked, threat=ThreatModel("linf", 1.0))


def test_the_routing_probe_sees_which_images_changed_expert():
    model = ToyMoE(3, (1, 2, 2))
    clean = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    attacked = 1 - clean
    before, after = (
        model.routed(images).routes[0].experts[:, 0, 0] for images in (clean, attacked)
    )

    found = probe(observation_of(model, clean, attacked))

    assert found["routing_change"].tolist() == (before != after).float().tolist()
    assert torch.equal(found["routing_change.layer0"], found["routing_change"])
    assert 0 < found["routing_change"].mean() < 1


def test_a_dense_model_has_no_routing_to_change():
    images = torch.rand(2, 3, 4, 4)

    assert probe(observation_of(LinearModel(), images, images)) == {}


def changed(sample, epsilon, change):
    return replace(record(sample, "a", epsilon), measures={"routing_change": change})


def attacked(records, *, shows_last=True):
    facts = {"a": AttackFacts(is_control=False, shows_last=shows_last)}
    return replace(evidence(records), attacks=facts)


def test_routing_change_is_the_mean_over_images():
    records = [changed(0, "0.1", 0.0), changed(1, "0.1", 0.5), record(0, "a", "0.3")]

    first, second = routing_change(attacked(records))

    assert (first.value, first.n, first.epsilon) == (0.25, 2, "0.1")
    assert second.value is None
    assert second.reason.startswith("the model has no routes")


def test_routing_change_asks_for_every_image_at_every_epsilon():
    nested = replace(attacked([changed(0, "0.1", 0.5)]), protocol="nested")

    assert {value.value for value in routing_change(nested)} == {None}
    assert "protocol 'independent'" in routing_change(nested)[0].reason


def test_routing_change_asks_for_last_iterates():
    [value, _] = routing_change(attacked([changed(0, "0.1", 0.5)], shows_last=False))

    assert value.value is None
    assert "last iterates" in value.reason
