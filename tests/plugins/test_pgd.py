"""PGD beyond the contract: starts, stops, restarts, and what a fooled image costs."""

from __future__ import annotations

import pytest
import torch

from harness.api import AttackError, ThreatModel
from harness.ledger import Ledger
from harness.passes import objective_of
from harness.tensors import Noise, Outcome, is_fooled
from harness.testing import LinearModel, ToyMoE, linear_distance, linear_samples
from harness_attacks.objectives import (
    cross_entropy,
    negative_margin,
    sigmoid_cross_entropy,
)
from harness_attacks.pgd import pgd


def attack(samples, threat, *, ledger=None, model=None, **parameters):
    count = len(samples.ids)
    objective = objective_of(
        model or LinearModel(),
        negative_margin,
        samples.labels,
        batch_size=count,
        ledger=ledger,
    )
    noise = Noise(0, samples.ids, (3, 8, 8))
    return pgd(objective, samples.images, samples.labels, threat, noise=noise, **parameters)


def test_from_the_clean_image_a_step_has_its_length():
    samples, threat = linear_samples(), ThreatModel("linf", 0.05)

    found = attack(samples, threat, steps=1, relative_step_size=0.4, init="clean")

    # the gradient is the same in every pixel: all go down by 0.4 * 0.05
    assert torch.allclose(found, samples.images - 0.02)


def test_from_the_dark_corner_every_pixel_begins_darker_by_epsilon():
    samples, threat = linear_samples(), ThreatModel("linf", 0.05)
    samples.images[0, 0, 0, 0] = 0.02  # 0 is as dark as it gets

    found = attack(samples, threat, steps=0, init="dark-corner")

    assert torch.allclose(found, (samples.images - 0.05).clamp(min=0))


def test_the_given_starting_points_are_taken_and_kept_in_the_ball():
    samples, threat = linear_samples(), ThreatModel("linf", 0.05)
    start = [samples.images + 0.3]

    found = attack(samples, threat, steps=0, start=start)

    assert torch.allclose(found, samples.images + 0.05)


def test_a_fooled_image_leaves_and_costs_nothing_more():
    samples = linear_samples(2)
    samples.images[0] -= 0.09  # 0.01 from the plane
    ledger = Ledger(2, torch.device("cpu"))

    attack(samples, ThreatModel("linf", 0.05), ledger=ledger, steps=10, init="clean",
           relative_step_size=0.3)  # fmt: skip

    # the first pass scores the clean image, the second the step of 0.015 that fools it
    assert ledger.forwards.tolist() == [2, 11]
    assert ledger.backwards.tolist() == [2, 10]


def test_without_stopping_all_steps_are_done():
    samples, ledger = linear_samples(2, gap=0.001), Ledger(2, torch.device("cpu"))

    attack(samples, ThreatModel("linf", 0.05), ledger=ledger, steps=4, stop="never")

    assert ledger.forwards.tolist() == [5, 5]


def test_leaving_the_race_changes_no_verdict():
    torch.manual_seed(0)
    model = ToyMoE(4, (3, 8, 8), gradient="soft")
    images = Noise(5, torch.arange(64), (3, 8, 8)).uniform(0) / 2 + 0.5
    labels = model(images).argmax(dim=1).detach()
    samples = linear_samples(64)._replace(images=images, labels=labels)
    threat = ThreatModel("linf", 0.02)

    stopped = attack(samples, threat, model=model, steps=7, relative_step_size=0.3)
    fooled = is_fooled(model(stopped), labels)
    seen = torch.zeros_like(fooled)
    for steps in range(8):
        iterate = attack(samples, threat, model=model, steps=steps, relative_step_size=0.3,
                         stop="never")  # fmt: skip
        seen |= is_fooled(model(iterate), labels)

    assert torch.equal(fooled, seen)
    assert 0 < fooled.sum() < 64


def test_more_restarts_never_fool_fewer():
    samples, threat = linear_samples(gap=0.05), ThreatModel("linf", 0.05)

    one = is_fooled(LinearModel()(attack(samples, threat, steps=0)), samples.labels)
    many = is_fooled(LinearModel()(attack(samples, threat, steps=0, restarts=9)), samples.labels)

    assert (many | ~one).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("factor", "fooled"), [(1.05, True), (0.95, False)])
def test_fools_exactly_the_images_within_reach(norm, factor, fooled):
    samples = linear_samples()

    found = attack(samples, ThreatModel(norm, factor * linear_distance(norm)))

    assert is_fooled(LinearModel()(found), samples.labels).tolist() == [fooled] * 8


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"init": "zero"}, "write 'random' or 'clean'"),
        ({"stop": "always"}, "write 'first' or 'never'"),
        ({"start": [torch.zeros(8, 3, 8, 8)] * 2}, "1 batches of shape"),
    ],
    ids=["init", "stop", "start"],
)
def test_what_it_does_not_know_is_refused(parameters, remedy):
    with pytest.raises(AttackError, match=remedy):
        attack(linear_samples(), ThreatModel("linf", 0.1), **parameters)


def test_cross_entropy_of_several_classes_is_that_of_their_sum():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    accepted = torch.tensor([[True, False, True]])

    loss = cross_entropy(Outcome(logits, torch.tensor([0]), accepted))

    # softmax: 0.0900, 0.2447, 0.6652; -ln(0.7553)
    assert loss.tolist() == pytest.approx([0.280678], abs=1e-5)


@pytest.mark.parametrize("accepted", [None, torch.tensor([[True, False]])], ids=["label", "set"])
def test_sigmoid_cross_entropy_sums_over_classes(accepted):
    outcome = Outcome(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), accepted)

    # ln(1 + e^-2) + ln 2
    assert sigmoid_cross_entropy(outcome).tolist() == pytest.approx([0.820075], abs=1e-5)


def test_pgd_goes_on_until_no_accepted_class_is_left():
    samples = linear_samples(2)
    accepted = torch.tensor([[True, True], [False, True]])
    objective = objective_of(
        LinearModel(), cross_entropy, samples.labels, batch_size=2, accepted=accepted
    )

    score = objective.score((samples.images - 0.2).clamp(0, 1))

    assert score.fooled.tolist() == [False, True]


def test_cross_entropy_is_summed_by_nobody():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])

    loss = cross_entropy(Outcome(logits, torch.tensor([0, 1])))

    # ln 2 for each image
    assert loss.tolist() == pytest.approx([0.693147, 0.693147])
