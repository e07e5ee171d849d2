"""Losses on routes: numbers worked out by hand, and gradients where they are needed."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from harness.api import AttackError, Routing
from harness.numerics import Batches
from harness.passes import objective_of
from harness.seeing import clean_pass
from harness.tensors import Outcome, Samples
from harness.testing import BALANCE, ToyMoE
from harness_attacks.objectives import clean_divergence, cross_entropy
from harness_attacks.routing import (
    cross_entropy_with_auxiliary,
    released_joint_loss,
    router_gap,
    routing_change,
)

LOGITS = torch.tensor([[0.0, 0.0, 0.0]])
LABEL = torch.tensor([2])


def routing(gates, experts, kept=None):
    """One image: gates of each token, chosen experts, and whether they were kept."""
    weights, chosen = torch.tensor([gates]), torch.tensor([experts])
    worked = torch.ones_like(chosen).bool() if kept is None else torch.tensor([kept])
    return Routing(weights.log().requires_grad_(), weights, chosen, worked)


def outcome(attacked, clean, **about):
    return Outcome(LOGITS, LABEL, routes=tuple(attacked), clean_routes=tuple(clean), **about)


CLEAN = routing([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], [[0, 1], [1, 2]])


def test_routes_that_all_experts_share_cannot_change():
    everyone = routing([[0.5, 0.3, 0.2]], [[0, 1, 2]])

    loss = routing_change(outcome([everyone], [everyone]))

    assert loss.tolist() == pytest.approx([0], abs=1e-6)


def test_the_change_is_the_gates_that_left_the_experts_of_the_clean_image():
    attacked = routing([[0.1, 0.1, 0.8], [0.75, 0.2, 0.05]], [[2, 0], [0, 1]])

    loss = routing_change(outcome([attacked], [CLEAN]))

    # token 0: experts 0 and 1 keep 0.2; token 1: experts 1 and 2 keep 0.25
    assert loss.tolist() == pytest.approx([-(log(0.2) + log(0.25)) / 2], abs=1e-6)


def test_the_change_of_several_layers_is_their_mean():
    still = routing([[0.9, 0.1]], [[0]])
    moved = routing([[0.4, 0.6]], [[1]])

    loss = routing_change(outcome([still, moved], [still, still]))

    assert loss.tolist() == pytest.approx([-(log(0.9) + log(0.4)) / 2], abs=1e-6)


def test_the_change_has_a_gradient_at_the_clean_image():
    model = toy()

    _, gradient = objective(model, routing_change).gradient(images())

    assert gradient.flatten(1).any(dim=1).all()


def test_an_expert_whose_choice_was_dropped_did_not_work():
    dropped = routing([[0.5, 0.3, 0.2]], [[0, 1]], kept=[[False, True]])

    loss = routing_change(outcome([dropped], [dropped]))

    assert loss.tolist() == pytest.approx([-log(0.3)], abs=1e-6)


def test_a_token_that_nobody_took_has_nothing_to_lose_and_a_finite_gradient():
    nobody = routing([[0.5, 0.3, 0.2]], [[0, 1]], kept=[[False, False]])
    attacked = routing([[0.1, 0.1, 0.8]], [[2, 0]])

    loss = routing_change(outcome([attacked], [nobody]))
    (gradient,) = torch.autograd.grad(loss.sum(), attacked.gate_logits)

    assert loss.tolist() == pytest.approx([0], abs=1e-6)
    assert torch.allclose(gradient, torch.zeros(1, 1, 3), atol=1e-6)


def test_the_released_joint_loss_asks_the_router_for_the_label_modulo_experts():
    # the label 2 wants expert 2 % 3 = 2 in the first layer, 2 % 2 = 0 in the second
    first = routing([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], [[0], [2]])
    second = routing([[0.125, 0.875]], [[1]])

    loss = released_joint_loss(outcome([first, second], [first, second]))

    router = ((log(4) + log(2)) / 2 + log(8)) / 2
    assert loss.tolist() == pytest.approx([log(3) + 6 * router], abs=1e-5)


def test_the_auxiliary_loss_is_added_as_the_model_weights_it():
    loss = cross_entropy_with_auxiliary(outcome([], [], auxiliary_loss=torch.tensor([0.25])))

    assert loss.tolist() == pytest.approx([log(3) + 0.25], abs=1e-6)


def test_a_dense_model_is_left_with_cross_entropy():
    loss = cross_entropy_with_auxiliary(Outcome(LOGITS, LABEL))

    assert torch.equal(loss, cross_entropy(Outcome(LOGITS, LABEL)))


def test_the_auxiliary_loss_of_each_image_reaches_the_objective():
    model = toy()
    plain, both = (objective(model, loss).score(images()).loss for loss in LOSSES)

    # four experts: BALANCE * 4 * the squared gates
    gates = model.routed(images()).routes[0].gates[:, 0]
    assert torch.allclose(both - plain, BALANCE * 4 * gates.square().sum(dim=1), atol=1e-6)


LOSSES = (cross_entropy, cross_entropy_with_auxiliary)


def test_the_divergence_from_the_clean_prediction():
    # clean (1/2, 1/2), attacked (1/4, 3/4): log(2) / 2 + log(2/3) / 2
    attacked = torch.tensor([[0.0, log(3.0)]])
    known = Outcome(attacked, torch.tensor([0]), clean_logits=torch.zeros(1, 2))

    assert clean_divergence(known).tolist() == pytest.approx([(log(2) + log(2 / 3)) / 2], abs=1e-6)


def test_the_divergence_is_zero_without_gradient_at_the_clean_image():
    score, gradient = objective(toy(), clean_divergence).gradient(images())

    assert score.loss.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


def test_the_gap_of_the_router_is_the_least_over_tokens_and_layers():
    scores = [[[1.0, 4.0, 2.0], [3.0, 0.0, 1.0]]], [[[0.5, 1.0]]]
    clean = [[[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]]], [[[1.0, 0.0]]]
    attacked, before = (
        [
            Routing(torch.tensor(s), torch.tensor(s), *[torch.zeros(1, 1, 1).long()] * 2)
            for s in both
        ]
        for both in (scores, clean)
    )

    likeliest = router_gap(outcome(attacked, before), rank=0)
    second = router_gap(outcome(attacked, before), rank=1)

    # rank 0: expert 0 at token 0, 1 - 4; expert 1 at token 1, 0 - 3; expert 0 of 2, 0.5 - 1
    assert likeliest.tolist() == [-3]
    # rank 1: expert 1, 4 - 2; expert 2, 1 - 3; expert 1 of 2, 1 - 0.5
    assert second.tolist() == [-2]


@pytest.mark.parametrize("loss", [routing_change, released_joint_loss])
def test_a_dense_model_has_no_routes_to_lose(loss):
    with pytest.raises(AttackError, match="needs a routed model; this one is dense"):
        loss(Outcome(LOGITS, LABEL))


def test_the_divergence_asks_for_the_clean_logits():
    with pytest.raises(AttackError, match="needs the logits of the clean images"):
        clean_divergence(Outcome(LOGITS, LABEL))


def toy():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ToyMoE(3, (1, 4, 4)).eval().requires_grad_(requires_grad=False)


def images():
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def objective(model, loss):
    samples = Samples(torch.arange(6), images(), torch.arange(6) % 3)
    context = clean_pass(model, samples, batches=Batches(8))
    return replace(objective_of(model, loss, samples.labels, batch_size=8), context=context)
