"""Attacks judged in a part of a routed model: their records, their metrics, and dense models."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import harness as package
from harness.api import Evidence, Record
from harness.cell import Protocol, Setting, evaluate
from harness.errors import HarnessError
from harness.judging import BoundAttack, Defence
from harness.numerics import Batches
from harness.records import Value
from harness.tensors import Samples
from harness.testing import LinearMoE, ToyMoE, linear_samples
from harness.threat import ThreatModel
from harness.views import View
from harness_metrics.accuracy import (
    robust_accuracy_of_experts,
    robust_accuracy_of_router,
)


def darken(objective, images, labels, threat, *, noise):
    return threat.project(images - threat.epsilon, images)


def judged_in(view, model, samples, epsilon=0.1):
    """The records of one attack that is judged in a view."""
    bound = BoundAttack("attack", darken, lambda outcome: -outcome.margin, {}, (), View(view))
    threats = {"e": ThreatModel("linf", epsilon)}
    setting = Setting(Defence(model, Batches(8)), [bound], threats, Protocol("nested"), 0)
    return evaluate(setting, samples).records


@pytest.fixture
def model():
    """Two pixels around grey, p0 and p1: p0 >= 0 goes to expert 0 and right, else to expert 1.

    Expert 0 gives label 0 the margin 2 * p1, expert 1 the margin -2 * p1.
    """
    toy = ToyMoE(2, (1, 1, 2), num_experts=2).eval().requires_grad_(requires_grad=False)
    toy.router.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    toy.router.bias.zero_()
    right = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    toy.experts.copy_(torch.stack([right, -right]))
    return toy


def one_image(*pixels):
    image = torch.tensor(pixels)[None, None, None]
    return Samples(torch.tensor([7]), image, torch.tensor([0]))


@pytest.mark.parametrize(
    ("pixels", "view", "margin", "full_margin"),
    [
        # 0.1 darker: p = (-0.05, 0.1), so that expert 1 is chosen
        pytest.param((0.55, 0.7), "router", -0.4, -0.2, id="the router leads to a wrong expert"),
        pytest.param((0.55, 0.7), "experts", 0.2, -0.2, id="the right expert would stand it"),
        # 0.1 darker: p = (0.1, -0.05), so that expert 0 stays
        pytest.param((0.70, 0.55), "router", 0.1, -0.1, id="the router stands it"),
        pytest.param((0.70, 0.55), "experts", -0.1, -0.1, id="the expert does not"),
        # 0.1 darker: p = (-0.05, -0.05), expert 1 on the wrong side of its own plane
        pytest.param(
            (0.55, 0.55), "experts", -0.1, 0.1, id="both together stand what neither does"
        ),
    ],
)
def test_a_part_is_judged_by_itself_and_the_whole_is_told_beside_it(
    model, pixels, view, margin, full_margin
):
    [record] = judged_in(view, model, one_image(*pixels))

    assert record.view == view
    assert record.adversarial_margin == pytest.approx(margin, abs=1e-6)
    assert record.is_robust is (margin > 0)
    assert record.measures["full_margin"] == pytest.approx(full_margin, abs=1e-6)
    assert record.measures["full_fooled"] == float(full_margin < 0)


@pytest.mark.parametrize("view", ["full", "detached", "relaxed", "forced"])
def test_views_of_attacks_are_judged_by_the_whole_model_alone(model, view):
    [record] = judged_in(view, model, one_image(0.55, 0.7))

    assert record.view == "full"
    assert record.adversarial_margin == pytest.approx(-0.2, abs=1e-6)
    assert "full_margin" not in record.measures


class Fragile(LinearMoE):
    """Its logits are NaN on images darker than grey, unless their routes are replayed."""

    def routed(self, images, *, routes=None, relaxed=False, detach_router=False):
        found = super().routed(images, routes=routes)
        is_dark = images.flatten(1).mean(dim=1, keepdim=True) < 0.5
        broken = found.logits.masked_fill(is_dark, float("nan"))
        return found if routes else found._replace(logits=broken)


def test_a_margin_that_json_cannot_hold_is_left_out():
    record = judged_in("experts", Fragile(), linear_samples(1, 0.05))[0]

    assert "full_margin" not in record.measures
    json.dumps(record.to_json(), allow_nan=False)


def record(sample, view, epsilon, *, adversarial=1, clean=1):
    return Record(sample, f"by {view}", epsilon, 1, clean, 0.0, adversarial, 0.0, view=view)


DIAGNOSES = (
    # sample 0 stands both; 1 falls to its experts at 0.1; 2 to the router at 0.3; 3 is wrong clean
    *(record(0, view, epsilon) for view in ("experts", "router") for epsilon in ("0.1", "0.3")),
    record(1, "experts", "0.1", adversarial=0), record(1, "experts", "0.3"),
    record(1, "router", "0.1"), record(1, "router", "0.3"),
    record(2, "experts", "0.1"), record(2, "experts", "0.3"),
    record(2, "router", "0.1"), record(2, "router", "0.3", adversarial=0),
    *(record(3, view, eps, clean=0) for view in ("experts", "router") for eps in ("0.1", "0.3")),
)  # fmt: skip


def evidence(diagnoses, protocol="nested"):
    grid = {"0.1": 0.1, "0.3": 0.3}
    return Evidence((), grid, "0.1", {}, protocol=protocol, diagnoses=diagnoses)


@pytest.mark.parametrize(
    ("metric", "protocol", "expected"),
    [
        # of 4 images: 3 is wrong, 1 fooled at 0.1 and, as the ball only grows, at 0.3
        (robust_accuracy_of_experts, "nested", [0.5, 0.5]),
        # each epsilon by itself: 1 stands 0.3
        (robust_accuracy_of_experts, "independent", [0.5, 0.75]),
        (robust_accuracy_of_router, "nested", [0.75, 0.5]),
    ],
)
def test_each_diagnosis_counts_its_own_records(metric, protocol, expected):
    values = metric(evidence(DIAGNOSES, protocol))

    assert [value.value for value in values] == expected
    assert [value.n for value in values] == [4, 4]


@pytest.mark.parametrize("metric", [robust_accuracy_of_experts, robust_accuracy_of_router])
def test_without_records_a_diagnosis_gives_the_reason(metric):
    first, second = metric(evidence(()))

    assert isinstance(first, Value)
    assert first.value is None
    assert "no routes" in first.reason
    assert (first.epsilon, second.epsilon) == ("0.1", "0.3")


@pytest.fixture
def diagnosing(tiny):
    """The tiny suite with an attack on the router beside noise and PGD."""
    text = tiny.read_text().replace("[[models]]", ROUTER + "[[models]]", 1)
    tiny.write_text(text.replace('"auc"', '"auc", "ra-router", "ra-experts"'))
    return tiny


ROUTER = """
[[attacks]]
name = "pgd"
label = "route"
view = "router"
steps = 3

"""


def toy():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ToyMoE(10, (1, 8, 8))


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_suite_writes_the_view_of_an_attack_and_scores_it_apart(diagnosing, tmp_path):
    frame = package.evaluate(toy(), suite=str(diagnosing), out=tmp_path / "runs")

    [row], kept = frame.attrs["rows"], frame.attrs["records"]
    views = {record["attack"]: record.get("view", "full") for record in kept}
    assert views == {"noise": "full", "pgd": "full", "route": "router"}
    assert row["ra_router"]["32/255"]["n"] == 20
    assert row["ra_experts"]["32/255"]["value"] is None
    [manifest] = tmp_path.glob("runs/*/manifest.json")
    assert json.loads(manifest.read_text())["not_applicable"] == []


def test_a_dense_model_skips_attacks_on_routes_and_says_so(diagnosing, tmp_path):
    frame = package.evaluate(dense(), suite=str(diagnosing), out=tmp_path / "runs")

    [row] = frame.attrs["rows"]
    assert {record["attack"] for record in frame.attrs["records"]} == {"noise", "pgd"}
    assert "no routes" in row["ra_router"]["32/255"]["reason"]
    [manifest] = tmp_path.glob("runs/*/manifest.json")
    assert json.loads(manifest.read_text())["not_applicable"] == ["route"]


def test_a_dense_model_has_nothing_to_do_in_a_suite_of_routes_alone(diagnosing, tmp_path):
    before, _, after = diagnosing.read_text().partition("[[attacks]]")
    diagnosing.write_text(before + ROUTER + after[after.index("[[models]]") :])

    with pytest.raises(HarnessError, match="every attack looks at routes"):
        package.evaluate(dense(), suite=str(diagnosing), out=tmp_path / "runs")
