"""Objectives: confirmed by the original, averaged over draws, every pass counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from harness.errors import AttackError
from harness.numerics import Batches
from harness.passes import Surrogate, objective_of
from harness.seeing import clean_pass, predict
from harness.tensors import Noise, Samples, noise_key
from harness.testing import LinearModel, ToyMoE, linear_samples
from harness.threat import ThreatModel
from harness.views import View

SAMPLES = linear_samples(4, gap=0.1)


class Shifted(nn.Module):
    """`LinearModel` that takes every image for another mean: it lies about the plane."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, images):
        return LinearModel()(images + self.shift)


class Wobbling(nn.Module):
    """`LinearModel`, its logits scaled by 1.5 and 0.5 in turn: a draw whose mean is known."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        return LinearModel()(images) * (1.5 if self.passes % 2 else 0.5)


def objective(model, **changes):
    labels = SAMPLES.labels
    whole = objective_of(model, lambda outcome: -outcome.margin, labels, batch_size=8)
    return replace(whole, **changes)


ALARMIST = Surrogate(Shifted(-0.15))
"""Says that all are fooled, whose margin is 2 * (0.1 - 0.15)."""
BLIND = Surrogate(Shifted(0.15))
"""Says that none is fooled within 0.25 of the plane."""


def test_who_a_lying_copy_says_is_fooled_is_judged_by_the_model():
    bound = objective(LinearModel(), surrogate=ALARMIST)

    score = bound.score(SAMPLES.images)

    assert score.loss.tolist() == pytest.approx([0.1] * 4, abs=1e-5)
    assert not score.fooled.any()
    assert score.margin.tolist() == pytest.approx([0.2] * 4, abs=1e-5)


def test_a_confirmation_is_counted_where_it_was_asked_for():
    bound = objective(LinearModel(), surrogate=ALARMIST)
    images = SAMPLES.images.clone()
    images[2:] = 0.7  # the copy, too, says that these are right: 0.7 - 0.15 > 0.5

    bound.gradient(images)

    assert bound.ledger.forwards.tolist() == [2, 2, 1, 1]
    assert bound.ledger.backwards.tolist() == [1, 1, 1, 1]


def test_who_a_blind_copy_says_is_right_is_not_asked_again():
    bound = objective(LinearModel(), surrogate=BLIND)

    score = bound.score(SAMPLES.images - 0.15)

    assert not score.fooled.any()
    assert bound.ledger.forwards.tolist() == [1] * 4


@pytest.mark.parametrize(("epsilon", "is_fooled"), [(0.105, True), (0.095, False)])
def test_an_attack_on_a_lying_copy_goes_on_until_the_model_confirms(registry, epsilon, is_fooled):
    bound = objective(LinearModel(), surrogate=ALARMIST)
    pgd = registry.find("attacks", "pgd").load()
    noise = Noise(noise_key(0, "pgd"), SAMPLES.ids, (3, 8, 8))

    found = pgd(
        bound, SAMPLES.images, SAMPLES.labels, ThreatModel("linf", epsilon), noise=noise, steps=10,
        init="clean",
    )  # fmt: skip

    assert (LinearModel()(found).argmax(dim=1) != SAMPLES.labels).tolist() == [is_fooled] * 4
    # ten steps of a tenth of epsilon: 11 passes, each of which the copy asks to have confirmed
    assert bound.ledger.forwards.tolist() == [22] * 4


def test_a_surrogate_view_asks_the_original_for_every_image():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, copy = ToyMoE(2, (3, 8, 8)).eval(), ToyMoE(2, (3, 8, 8)).eval()
    context = clean_pass(model, SAMPLES, batches=Batches(8))
    bound = objective(model, context=context, surrogate=Surrogate(copy)).through(View("relaxed"))

    score = bound.score(SAMPLES.images)

    assert torch.equal(score.fooled, model(SAMPLES.images).argmax(dim=1) != SAMPLES.labels)
    assert torch.allclose(score.logits, copy.routed(SAMPLES.images, relaxed=True).logits)
    assert bound.ledger.forwards.tolist() == [2] * 4


def test_the_mean_of_draws_is_that_of_logits_loss_and_gradient():
    _, exact = objective(LinearModel()).gradient(SAMPLES.images)

    score, gradient = objective(Wobbling()).averaged(2).gradient(SAMPLES.images)

    # 1.5 and 0.5 times the logits (-0.1, 0.1): their mean
    assert torch.allclose(score.logits, LinearModel()(SAMPLES.images))
    assert score.loss.tolist() == pytest.approx([-0.2] * 4, abs=1e-6)
    assert torch.allclose(gradient, exact)


def test_three_draws_are_three_passes():
    bound = objective(Wobbling()).averaged(3)

    score, _ = bound.gradient(SAMPLES.images)

    # (1.5 + 0.5 + 1.5) / 3 = 7 / 6 of a margin of 0.2
    assert score.margin.tolist() == pytest.approx([0.2 * 7 / 6] * 4, abs=1e-6)
    assert bound.ledger.forwards.tolist() == [3] * 4
    assert bound.ledger.backwards.tolist() == [3] * 4


def test_each_draw_is_differentiated_before_the_next_is_made():
    # a captured graph keeps the activations of its last replay only
    alive = []

    class Reusing(nn.Module):
        def forward(self, images):
            logits = LinearModel()(images)
            logits.register_hook(lambda _: alive.clear())
            alive.append(logits)
            assert len(alive) == 1
            return logits

    objective(Reusing()).averaged(3).gradient(SAMPLES.images)

    assert alive == []


def test_confirmations_of_draws_are_counted_as_draws():
    bound = objective(LinearModel(), surrogate=ALARMIST).averaged(3)

    bound.score(SAMPLES.images)

    assert bound.ledger.forwards.tolist() == [6] * 4


def test_a_prediction_is_the_mean_of_its_draws():
    logits = predict(Wobbling(), SAMPLES.images, batches=Batches(8), draws=2)

    assert torch.allclose(logits, LinearModel()(SAMPLES.images))


def test_losses_are_taken_in_float32_whatever_the_pass_was_in():
    seen = []

    def loss(outcome):
        seen.append((outcome.routes[0].gate_logits.dtype, outcome.routes[0].gates.dtype))
        return outcome.routes[0].gate_logits @ torch.ones(4) @ torch.ones(1)

    model = ToyMoE(2, (3, 8, 8)).eval()
    context = clean_pass(model, SAMPLES, batches=Batches(8))
    mixed = Surrogate(model, "bfloat16-gradients")
    bound = objective(model, context=context, surrogate=mixed).under(loss)

    score, gradient = bound.gradient(SAMPLES.images)

    assert seen == [(torch.float32, torch.float32)]
    assert {score.loss.dtype, score.logits.dtype, gradient.dtype} == {torch.float32}


def test_another_loss_is_not_noted_in_the_ledger():
    bound = objective(LinearModel())

    bound.under(lambda outcome: outcome.margin + 5).score(SAMPLES.images)
    bound.score(SAMPLES.images)

    assert bound.ledger.first_loss.tolist() == pytest.approx([-0.2] * 4, abs=1e-6)
    assert bound.ledger.forwards.tolist() == [2] * 4


def test_the_clean_pass_knows_routes_of_the_images_and_of_no_padding():
    model = ToyMoE(2, (3, 8, 8)).eval()
    samples = Samples(torch.arange(11), torch.rand(11, 3, 8, 8), torch.zeros(11).long())

    context = clean_pass(model, samples, batches=Batches(8))

    [routing] = context.clean_routes
    assert routing.experts.shape == (11, 1, 1)
    assert torch.equal(routing.experts, model.routed(samples.images).routes[0].experts)
    assert torch.equal(context.rows(torch.tensor([7])).clean_routes[0].gates, routing.gates[7:8])


class Sum(nn.Module):
    """Two parts, of which the second alone would be fooled."""

    def __init__(self):
        super().__init__()
        self.sure, self.weak = LinearModel(), Shifted(-0.15)

    def forward(self, images):
        return 3 * self.sure(images) + self.weak(images)


def test_of_a_part_its_own_loss_is_climbed_and_the_whole_decides():
    whole = objective(Sum())

    score = whole.of("weak").score(SAMPLES.images)

    assert score.loss.tolist() == pytest.approx([0.1] * 4, abs=1e-6)  # -2 * (0.1 - 0.15)
    assert not score.fooled.any()
    assert score.margin.tolist() == pytest.approx([0.5] * 4, abs=1e-6)  # 3 * 0.2 - 0.1
    assert torch.allclose(
        whole.of("weak").gradient(SAMPLES.images)[1],
        objective(Shifted(-0.15)).gradient(SAMPLES.images)[1],
    )


def test_a_part_that_a_model_has_not_is_refused():
    with pytest.raises(AttackError, match="no part 'week'; did you mean 'weak'"):
        objective(Sum()).of("week")
