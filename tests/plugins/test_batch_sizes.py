"""Attacks on a routed model: batch size, padding and batch mates change no record."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.building import bound_attack
from harness.cell import Protocol, Setting, evaluate
from harness.judging import Defence
from harness.numerics import Batches
from harness.passes import Surrogate
from harness.suite import attack_spec
from harness.tensors import Noise, Samples
from harness.testing import ToyMoE
from harness.threat import ThreatModel

SHAPE = (3, 4, 4)
ATTACKS = {
    "apgd:ce": {"steps": 4},
    "apgd:experts": {"steps": 4},
    "apgd:router": {"steps": 4},
    "apgd:routing-change": {"steps": 4},
    "apgd:ce+aux": {"steps": 4},
    "moe-battery:ce": {"steps": 4, "experts": 2},
    "forced-expert:ce": {"steps": 4, "experts": 3},
    "steered:ce": {"steps": 4, "experts": 3},
    "worst-of:ce": {"attacks": ["fgsm:relaxed", "pgd-10:router-detached"]},
}


def moe(gradient, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ToyMoE(5, SHAPE, gradient=gradient)
        torch.nn.init.normal_(model.router.weight)
    return model.eval().requires_grad_(requires_grad=False)


def records(registry, written, gradient, batches, samples, surrogate=None):
    name, _, objective = written.partition(":")
    spec = attack_spec(name, objective, registry)
    spec = replace(spec, parameters={**spec.parameters, **ATTACKS[written]})
    defence = Defence(moe(gradient), batches, surrogate=surrogate)
    threats = {"small": ThreatModel("linf", 0.02), "large": ThreatModel("linf", 0.1)}
    attacks = [bound_attack(spec, registry)]
    return evaluate(Setting(defence, attacks, threats, Protocol("nested"), 0), samples).records


def twenty(gradient):
    images = Noise(0, torch.arange(20), SHAPE).uniform(0) / 2 + 0.5
    return Samples(torch.arange(20), images, moe(gradient)(images).argmax(dim=1))


@pytest.mark.parametrize("gradient", ["none", "straight-through", "soft"])
@pytest.mark.parametrize("written", ATTACKS)
def test_batch_size_and_padding_change_no_record(registry, written, gradient):
    samples = twenty(gradient)

    whole = records(registry, written, gradient, Batches(64), samples)

    assert records(registry, written, gradient, Batches(8), samples) == whole
    assert records(registry, written, gradient, Batches(16, is_bucketed=True), samples) == whole
    assert any(not record.is_robust for record in whole)


@pytest.mark.parametrize("written", ATTACKS)
def test_an_image_fares_the_same_without_its_batch_mates(registry, written):
    samples = twenty("none")
    some = torch.tensor([3, 11, 12])

    whole = records(registry, written, "none", Batches(64), samples)
    part = records(registry, written, "none", Batches(64), samples.rows(some))

    assert [record for record in whole if record.sample in some.tolist()] == part


@pytest.mark.parametrize("written", ATTACKS)
def test_no_image_is_fooled_because_a_copy_says_so(registry, written):
    samples = twenty("none")
    copy = Surrogate(moe("soft", seed=1))

    found = records(registry, written, "none", Batches(64), samples, copy)

    assert all((record.adversarial_margin < 0) is not record.is_robust for record in found)
    assert not any(record.reason for record in found)
