"""AutoAttack: no weaker than any of its parts, and cheaper than all of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from harness.api import AttackError, ThreatModel
from harness.ledger import Ledger
from harness.passes import objective_of
from harness.tensors import Noise, Samples, is_fooled, noise_key
from harness.testing import LinearModel, linear_distance, linear_samples
from harness_attacks.apgd import apgd
from harness_attacks.autoattack import autoattack
from harness_attacks.fab import fab
from harness_attacks.objectives import cross_entropy, negative_margin
from harness_attacks.square import square
from harness_attacks.targeted import apgd_targeted

SMALL = {"steps": 10, "targets": 3, "queries": 60}
PARTS = {
    "apgd-ce": (partial(apgd, steps=10), cross_entropy),
    "apgd-t": (partial(apgd_targeted, steps=10, targets=3), cross_entropy),
    "fab-t": (partial(fab, steps=10, targets=3), cross_entropy),
    "square": (partial(square, queries=60), negative_margin),
}
THREAT = ThreatModel("linf", 0.03)


@pytest.fixture(scope="module")
def network():
    """A small net of five classes, random but for its size, that is right on what it says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 5))
    return net.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def samples(network):
    images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Samples(torch.arange(24), images, network(images).argmax(dim=1))


def attacked(run, model, samples, loss=cross_entropy, threat=THREAT, name="", **parameters):
    count = len(samples.ids)
    ledger = Ledger(count, torch.device("cpu"))
    objective = objective_of(model, loss, samples.labels, batch_size=64, ledger=ledger)
    shape = tuple(samples.images.shape[1:])
    noise = Noise(noise_key(0, "test"), samples.ids, shape)
    noise = noise.named(name) if name else noise
    found = run(objective, samples.images, samples.labels, threat, noise=noise, **parameters)
    return is_fooled(model(found), samples.labels), found, ledger


@pytest.mark.parametrize("name", PARTS)
def test_no_part_alone_fools_an_image_that_all_together_do_not(network, samples, name):
    run, loss = PARTS[name]

    alone, _, _ = attacked(run, network, samples, loss, name=name)
    together, _, _ = attacked(autoattack, network, samples, version="standard", **SMALL)

    assert alone.any()
    assert not (alone & ~together).any()


def test_an_image_that_is_fooled_leaves_all_later_parts(network, samples):
    fooled, _, first = attacked(autoattack, network, samples, version="standard", **SMALL)
    _, _, never = attacked(autoattack, network, samples, version="standard", **SMALL, stop="never")

    assert fooled.any()
    assert not fooled.all()
    assert (first.forwards <= never.forwards).all()
    assert first.forwards[fooled].max() < first.forwards[~fooled].min()


def test_leaving_changes_no_verdict(network, samples):
    first, _, _ = attacked(autoattack, network, samples, version="standard", **SMALL)
    never, _, _ = attacked(autoattack, network, samples, version="standard", **SMALL, stop="never")

    assert torch.equal(first, never)


def test_the_plus_version_is_no_weaker(network, samples):
    standard, _, _ = attacked(autoattack, network, samples, version="standard", **SMALL)
    plus, _, _ = attacked(autoattack, network, samples, version="plus", **SMALL)

    assert not (standard & ~plus).any()


def test_an_image_fares_the_same_alone_and_in_a_batch(network, samples):
    together, images, _ = attacked(autoattack, network, samples, version="standard", **SMALL)
    alone, image, _ = attacked(
        autoattack, network, samples.rows(torch.tensor([5])), version="standard", **SMALL
    )

    assert torch.equal(together[5:6], alone)
    assert torch.equal(images[5:6], image)


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_few_classes_are_attacked_too(num_classes):
    samples = linear_samples(4)
    reach = ThreatModel("linf", 1.05 * linear_distance("linf"))

    fooled, _, _ = attacked(
        autoattack, LinearModel(num_classes), samples, threat=reach, version="plus", **SMALL
    )

    assert fooled.all()


def test_an_unknown_version_names_those_that_exist(network, samples):
    with pytest.raises(AttackError, match="write 'standard' or 'plus' or 'rand'"):
        attacked(autoattack, network, samples, version="stadnard")
