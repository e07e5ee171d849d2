"""Accuracy of single experts: laws of the probe, and metrics worked out by hand."""

from __future__ import annotations

import pytest
import torch

from harness.api import Evidence, Record, ThreatModel
from harness.testing import LinearModel, LinearMoE, ToyMoE, observed
from harness_metrics.expert_probes import expert_accuracy
from harness_metrics.experts import (
    best_expert_accuracy,
    every_expert_accuracy,
    fooled_load,
    oracle_accuracy,
)

THREAT = ThreatModel("linf", 0.5)


def observation(model, count=12):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(count, 1, 4, 4, generator=generator)
    moved = (clean + torch.rand(clean.shape, generator=generator) / 2).clamp(0, 1)
    return observed(model.eval(), torch.arange(count) % 3, clean, moved, threat=THREAT)


def moe(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyMoE(3, (1, 4, 4), **changes)
        torch.nn.init.normal_(model.router.weight)
    return model


def test_the_expert_that_took_an_image_alone_says_what_the_model_says():
    model = moe()
    seen = observation(model)

    found = expert_accuracy(seen)

    alone = torch.stack([found[f"alone.expert{place}"] for place in range(4)])
    taken = found["taken_by"].long()
    right = (model(seen.adversarial_images).argmax(1) == seen.labels).float()
    assert len(taken.unique()) > 1
    assert torch.equal(alone.gather(0, taken[None])[0], right)


def test_the_oracle_is_the_best_of_all_and_every_expert_the_worst():
    found = expert_accuracy(observation(moe()))

    for prefix in ("", "clean."):
        alone = torch.stack([found[f"{prefix}alone.expert{place}"] for place in range(4)])
        assert torch.equal(found[f"{prefix}oracle"], alone.amax(0))
        assert torch.equal(found[f"{prefix}every_expert"], alone.amin(0))
        assert 0 < found[f"{prefix}oracle"].mean() != found[f"{prefix}every_expert"].mean()


def test_experts_that_are_alike_agree():
    found = expert_accuracy(observation(LinearMoE(3)))

    assert torch.equal(found["oracle"], found["every_expert"])


def test_a_dense_model_has_no_such_numbers():
    assert expert_accuracy(observation(LinearModel(3))) == {}


def record(sample, attack, rights, *, taken=0, fooled=False):
    measures = {f"alone.expert{place}": float(right) for place, right in enumerate(rights)}
    return Record(
        sample=sample, attack=attack, epsilon="0.1", label=1, clean_prediction=1, clean_margin=0.0,
        adversarial_prediction=0 if fooled else 1, adversarial_margin=0.0,
        measures={**measures, "taken_by": float(taken)},
    )  # fmt: skip


RECORDS = [
    # under both attacks: image 0 experts 0 and 1, image 1 expert 1 alone, image 2 nobody
    record(0, "a", [1, 1]), record(0, "b", [1, 1]),
    record(1, "a", [1, 1]), record(1, "b", [0, 1], fooled=True),
    record(2, "a", [1, 0], taken=1, fooled=True), record(2, "b", [0, 1], fooled=True),
    record(3, "a", [0, 1]), record(3, "b", [0, 1]),
]  # fmt: skip


def evidence(records=RECORDS, protocol="independent"):
    return Evidence(records, {"0.1": 0.1}, "0.1", {}, protocol=protocol)


@pytest.mark.parametrize(
    ("metric", "expected", "n"),
    [
        (best_expert_accuracy, 3 / 4, 4),  # the second: images 0, 1, 3
        (oracle_accuracy, 3 / 4, 4),
        (every_expert_accuracy, 1 / 4, 4),  # image 0
        (fooled_load, 2 / 3, 3),  # of three that succeeded, two at the first expert
    ],
)
def test_each_metric_counts_what_it_says(metric, expected, n):
    [value] = metric(evidence())

    assert (value.value, value.n, value.epsilon) == (pytest.approx(expected), n, "0.1")


METRICS = [best_expert_accuracy, oracle_accuracy, every_expert_accuracy, fooled_load]


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_records_changes_nothing(metric):
    assert metric(evidence(RECORDS[::-1])) == metric(evidence())


@pytest.mark.parametrize("metric", METRICS)
def test_other_protocols_have_a_reason_and_no_number(metric):
    [value] = metric(evidence(protocol="nested"))

    assert value.value is None
    assert "'independent'" in value.reason


@pytest.mark.parametrize("metric", METRICS)
def test_without_the_probe_there_is_a_reason_and_no_number(metric):
    [value] = metric(evidence([]))

    assert value.value is None
    assert "'expert-accuracy'" in value.reason


def test_where_no_attack_succeeded_there_is_no_load():
    [value] = fooled_load(evidence(RECORDS[:2]))

    assert (value.value, value.reason) == (None, "no attack succeeded")
