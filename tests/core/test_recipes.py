"""What recipes have in common: the course of a training, its opponent, TRADES' losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import TrainingError
from harness.recipes import Course, Opponent, divergence, trades_loss
from harness.tensors import Noise
from harness.threat import ThreatModel
from harness.training import (
    Batch,
    TrainingContext,
    in_steps,
    new_fabric,
    wrapped_for_training,
)
from harness.weights import _attack_named

SETTINGS = {
    "epochs": 4, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.1, "momentum": 0.9,
    "nesterov": False, "weight_decay": 0.5, "schedule": "cosine", "warm_up": 0.0, "translate": 0,
    "crop": 0, "flip": False, "cutout": 0,
}  # fmt: skip


def course(**changes):
    return Course(**{**SETTINGS, **changes})


@pytest.fixture
def context(registry):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    wrapped = wrapped_for_training(new_fabric(torch.device("cpu")), model)
    losses = lambda name: registry.find("objectives", name).load()  # noqa: E731
    return TrainingContext(wrapped, 24, 5, _attack_named(registry), losses)


def after_two_steps(optimizer, parameter):
    """A number whose gradient is 1, twice."""
    for _ in range(2):
        parameter.grad = torch.ones(1)
        optimizer.step()
    return float(parameter.detach())


def test_sgd_has_its_momentum_and_adds_the_decay_to_the_gradient():
    parameter = nn.Parameter(torch.ones(1))

    found = after_two_steps(course(optimizer="sgd").optimizer_of([parameter]), parameter)

    # gradient 1 + 0.5 * 1 = 1.5, so 1 - 0.15 = 0.85; then 1 + 0.425 and 0.9 * 1.5 of before:
    # 0.85 - 0.1 * 2.775
    assert found == pytest.approx(0.5725)


def test_sgd_looks_ahead_where_it_is_nesterovs():
    parameter = nn.Parameter(torch.ones(1))
    settled = course(optimizer="sgd", nesterov=True, weight_decay=0.0)

    found = after_two_steps(settled.optimizer_of([parameter]), parameter)

    # 1 + 0.9 * 1 = 1.9; then the velocity is 1.9, and 1 + 0.9 * 1.9 = 2.71
    assert found == pytest.approx(1 - 0.19 - 0.271)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_on_a_cpu_is_torchs_plain_one_to_the_bit(name):
    plain = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    extra = {"sgd": {"momentum": 0.9}}.get(name, {})
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 999)) for _ in range(2))
    optimizers = [
        course(optimizer=name).optimizer_of([ours]),
        plain([theirs], lr=0.1, weight_decay=0.5, **extra),
    ]

    ours.grad = theirs.grad = torch.linspace(-3, 2, 999).sin()
    [optimizer.step() for optimizer in optimizers * 3]

    assert torch.equal(ours, theirs)


def test_adamw_takes_the_decay_apart_from_the_gradient():
    parameter = nn.Parameter(torch.ones(1))

    found = after_two_steps(course(learning_rate=9.0).optimizer_of(
        [parameter], learning_rate=0.1), parameter)  # fmt: skip

    # each step: times 1 - 0.1 * 0.5, then minus 0.1, the gradient being as large as its mean
    assert found == pytest.approx((0.95 - 0.1) * 0.95 - 0.1)


@pytest.mark.parametrize(
    ("key", "word", "near"), [("optimizer", "sgdd", "sgd"), ("schedule", "cosin", "cosine")]
)
def test_a_word_that_is_not_known_names_the_near_one(key, word, near):
    with pytest.raises(TrainingError, match=f"{key} '{word}'.*did you mean '{near}'"):
        course(**{key: word})


def test_the_steps_are_at_three_quarters_and_nine_tenths():
    assert [in_steps(done) for done in (0.0, 0.74, 0.75, 0.89, 0.9)] == [1, 1, 0.1, 0.1, 0.01]


def test_a_course_asks_the_loop_for_what_it_says(context):
    asked = course(schedule="steps", warm_up=0.5).training(context, [], watch=len)

    # half of the rise; then three quarters of the second half
    assert [asked.schedule(done) for done in (0.25, 0.6, 0.875)] == [0.5, 1, 0.1]
    assert (asked.epochs, asked.batch_size, asked.watch) == (4, 24, len)


def test_without_changes_of_the_images_there_are_none(context):
    images, noise = torch.rand(3, 1, 8, 8), Noise(1, torch.arange(3), (1, 8, 8))

    plain = course().training(context, []).augment(images, noise)
    shifted = course(translate=2).training(context, []).augment(images, noise)

    assert torch.equal(plain, images)
    assert not torch.equal(shifted, images)


def test_an_opponent_takes_all_its_steps_and_stays_in_the_ball(context):
    batch = Batch(torch.rand(8, 1, 8, 8), torch.arange(8) % 4, Noise(1, torch.arange(8), (1, 8, 8)))

    found = Opponent("linf", "16/255", "pgd", 20, 0.25).attacked(context, batch)

    assert ThreatModel("linf", 16 / 255).contains(found, batch.images).all()
    losses = [
        functional.cross_entropy(context.model(images), batch.labels)
        for images in (batch.images, found)
    ]
    assert losses[1] > losses[0] + 0.05


def test_the_divergence_is_that_of_the_probabilities():
    clean, attacked = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)

    # probabilities 1/4, 3/4 against 1/2, 1/2
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(clean, attacked) == pytest.approx(expected)


def gradients(loss, gap):
    clean = torch.tensor([[0.0, gap]], requires_grad=True)
    attacked = torch.tensor([[0.0, -gap]], requires_grad=True)
    return torch.cat(torch.autograd.grad(loss(clean, attacked).sum(), [clean, attacked]))


def from_probabilities(clean, attacked):
    return functional.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="sum")


@pytest.mark.parametrize("gap", [1.0, 103.0, 104.0, 320.0, 1e4])
def test_the_divergence_has_a_finite_gradient_at_any_gap(gap):
    assert gradients(divergence, gap).isfinite().all()


def test_the_divergence_has_the_gradient_of_the_usual_form_where_that_one_is_finite():
    torch.testing.assert_close(gradients(divergence, 8.0), gradients(from_probabilities, 8.0))


def test_the_usual_form_is_not_finite_where_a_probability_underflows():
    # exp(-103) is the last float32 above 0
    assert gradients(from_probabilities, 103.0).isfinite().all()
    assert not gradients(from_probabilities, 104.0).isfinite().all()


def test_the_loss_of_trades_is_worked_out_by_hand():
    clean = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    attacked, labels = torch.zeros(2, 2), torch.tensor([1, 0])

    # cross-entropies log(4/3) and log 2; divergences of the test above and 0
    apart = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    expected = (math.log(4 / 3) + math.log(2)) / 2 + 6 * apart / 2
    assert trades_loss(clean, attacked, labels, beta=6.0) == pytest.approx(expected)


def test_both_sides_of_trades_have_a_gradient():
    clean = torch.tensor([[1.0, 0.0]], requires_grad=True)
    attacked = torch.tensor([[0.0, 1.0]], requires_grad=True)

    apart = trades_loss(clean, attacked, torch.tensor([0]), beta=1.0) - functional.cross_entropy(
        clean, torch.tensor([0])
    )
    found = torch.autograd.grad(apart, [clean, attacked])

    assert all(gradient.abs().sum() > 0.1 for gradient in found)
