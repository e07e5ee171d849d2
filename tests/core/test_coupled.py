"""Models that couple images: their groups are passed whole, and no image leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import harness as package
from harness.cell import Protocol, Setting, evaluate
from harness.errors import AttackError, HarnessError
from harness.judging import BoundAttack, Defence
from harness.ledger import Ledger
from harness.numerics import Batches
from harness.passes import LossObjective
from harness.seeing import clean_pass, predict
from harness.tensors import Noise, Samples
from harness.threat import ThreatModel
from harness_attacks.objectives import cross_entropy
from harness_attacks.pgd import pgd

GROUP = 4
COUNT = 14  # three groups and a half


class Coupled(nn.Module):
    """Linear in an image and in the mean of its group; notes how many images it is shown."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.mates = (nn.Linear(64, 3, bias=False) for _ in range(2))
        self.shown = set()

    def forward(self, images):
        self.shown.add(len(images))
        pixels = images.flatten(1) - 0.5
        means = [group.mean(dim=0, keepdim=True).expand_as(group) for group in pixels.split(GROUP)]
        return self.own(pixels) + self.mates(torch.cat(means))


@pytest.fixture
def model():
    return Coupled().eval().requires_grad_(requires_grad=False)


@pytest.fixture
def samples(model):
    ids = torch.arange(COUNT)
    images = Noise(3, ids, (1, 8, 8)).uniform(0) / 4 + 0.5
    labels = model(images).argmax(dim=1)
    model.shown.clear()
    return Samples(ids, images, labels)


def batches():
    return Batches(8, group=GROUP)


def evaluated(model, samples, name, **parameters):
    attack = BoundAttack("pgd", pgd, cross_entropy, {"steps": 5, "stop": "never", **parameters})
    threats = {"small": ThreatModel("linf", 0.015), "large": ThreatModel("linf", 0.04)}
    setting = Setting(Defence(model, batches()), [attack], threats, Protocol(name), 0)
    return evaluate(setting, samples)


def test_passes_are_made_of_whole_groups_and_not_padded(model, samples):
    logits = predict(model, samples.images, batches=batches())

    assert model.shown == {8, 6}
    assert torch.equal(logits, model(samples.images))


def test_halving_keeps_the_groups():
    sizes = []

    def run(rows, count):
        sizes.append(count)
        if count > GROUP:
            raise torch.OutOfMemoryError
        return rows

    Batches(20, group=GROUP).over(torch.zeros(20, 1, 8, 8), run)

    assert sizes == [20, 8, 4, 4, 4, 4, 4]


def test_no_image_may_leave(model, samples):
    context = clean_pass(model, samples, batches=batches())
    everything = torch.arange(COUNT)
    ledger = Ledger(COUNT, everything.device)
    objective = LossObjective(model, cross_entropy, context, ledger, everything, batches())

    assert len(objective.rows(everything).index) == COUNT
    with pytest.raises(AttackError, match=r"couples 4 images.*stop='never'"):
        objective.rows(torch.arange(8))


@pytest.mark.parametrize("name", ["nested", "independent"])
def test_every_image_is_attacked_with_its_mates_at_every_epsilon(model, samples, name):
    found = evaluated(model, samples, name)

    logits = model(found.adversarial["pgd", "large"])
    fooled = logits.argmax(dim=1) != samples.labels
    large = [record for record in found.records if record.epsilon == "large"]
    fresh = [record for record in large if "carried" not in record.flags]
    assert model.shown == {8, 6, COUNT}
    assert [record.is_robust for record in fresh] == [not fooled[r.sample] for r in fresh]
    assert 0 < sum(record.is_robust for record in large) < COUNT


def test_an_image_once_fooled_stays_fooled_where_epsilons_are_nested(model, samples):
    records = evaluated(model, samples, "nested").records

    by_epsilon = {
        epsilon: {r.sample for r in records if r.epsilon == epsilon and not r.is_robust}
        for epsilon in ("small", "large")
    }
    assert by_epsilon["small"]
    assert by_epsilon["small"] < by_epsilon["large"]


def test_an_attack_that_raises_is_refused_for_all(model, samples):
    def broken(objective, images, labels, threat, *, noise):
        raise RuntimeError("lost")

    attack = BoundAttack("broken", broken, cross_entropy, {})
    threats = {"small": ThreatModel("linf", 0.01)}
    setting = Setting(Defence(model, batches()), [attack], threats, Protocol("nested"), 0)

    records = evaluate(setting, samples).records

    assert {record.reason for record in records} == {"RuntimeError: lost"}


def test_the_published_capacity_is_attacked_in_whole_groups(tiny):
    text = tiny.read_text().replace("shard_size = 8", "shard_size = 20")
    tiny.write_text(text + '\n[[attacks]]\nname = "moe-battery"\nsteps = 3\n')

    frame = package.evaluate("vmoe/digits-capacity", suite=str(tiny))

    records = frame.attrs["records"]
    assert not [record["reason"] for record in records if record["reason"]]
    attacked = [record for record in records if record["attack"] == "moe-battery"]
    assert len(attacked) == 40  # twenty images, two epsilons
    assert {record["backwards"] > 0 for record in attacked if not record["flags"]} == {True}


def test_shards_that_cut_groups_are_refused(tiny):
    tiny.write_text(tiny.read_text().replace("shard_size = 8", "shard_size = 10"))

    with pytest.raises(HarnessError, match=r"couples 4 images.*multiple of 4"):
        package.evaluate("vmoe/digits-capacity", suite=str(tiny))
